"""Class lists and folder layouts. Expected values: timm's lists, and a loop in plain torch."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rib_plugin_imagenet_ood.classes import imagenet_classes
from rib_plugin_imagenet_ood.datasets import (
    ImageNet,
    ImageNetC,
    ImageNetV2,
    ShiftedImageNet,
    without_red_border,
)
from rib_plugin_imagenet_ood.published import BY_NAME, CORRUPTIONS

import rib_harness
from rib_harness import DataError, ImageSet, Preprocess
from rib_harness.catalog import load_catalog
from rib_harness.engine.data import Pixels, in_order
from rib_harness.files import members
from rib_harness.readers import Readers

MEMBERS = ["imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "objectnet",
           "imagenet-cartoon", "imagenet-drawing"]  # fmt: skip


def timm_list(name: str) -> list[str]:
    spec = find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "data" / "_info" / name).read_text().split()


def write(path: Path, colour: tuple[int, int, int] = (200, 10, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)


def opened(name: Any, root: Path | None, **options: Any) -> ImageSet:
    kind = {"imagenet": ImageNet, "imagenet-v2": ImageNetV2, "imagenet-c": ImageNetC}.get(name)
    dataset = kind(**options) if kind else ShiftedImageNet(name=name, **options)
    return dataset.open(root)


def test_classes_and_subsets_are_timms() -> None:
    classes = imagenet_classes()
    assert [c.wnid for c in classes] == timm_list("imagenet_synsets.txt")
    for letter in "ar":
        chosen = {c.wnid for c in classes if letter in c.sets}
        assert chosen == set(timm_list(f"imagenet_{letter}_synsets.txt"))
    assert sum(c.sets == "ar" for c in classes) == 86


def test_the_two_cranes_and_the_two_maillots_are_four_classes() -> None:
    """The names collide; WNIDs do not. Ids from protocol notes of the ImageNet community."""
    classes = imagenet_classes()
    for word, ids in (("crane", (134, 517)), ("maillot", (638, 639))):
        found = [c.id for c in classes if word in [w.strip() for w in c.words.split(",")]]
        assert tuple(found) == ids
        assert len({classes[i].wnid for i in ids}) == 2


def test_numbered_folders_are_numbers_and_not_text(tmp_path: Path) -> None:
    """Sorted as text, '10' comes before '2', and 12 of 1000 labels would be right."""
    root = tmp_path / BY_NAME["imagenet-v2"].folders[0]
    for number in range(1000):
        write(root / str(number) / "x.png", (number % 256, number // 256, 0))
    images = opened("imagenet-v2", tmp_path)
    assert len(images.classes) == 1000
    for i in range(1000):
        red, green, _ = images.image(i).getpixel((0, 0))  # type: ignore[misc]
        assert images.class_map[images.labels[i]] == (red + 256 * green,)


def test_a_subset_has_its_200_classes_with_their_ids(tmp_path: Path) -> None:
    for wnid in ("n01443537", "n02119022", "n07873807"):
        write(tmp_path / "imagenet-r" / wnid / "art_0.jpg")
    images = opened("imagenet-r", tmp_path)
    assert len(images.classes) == 200
    ids = [images.class_map[label][0] for label in images.labels]
    synsets = timm_list("imagenet_synsets.txt")
    assert [synsets[i] for i in ids] == ["n01443537", "n02119022", "n07873807"]
    assert any("3 of 200 classes, none for n01484850" in note for note in images.notes)


def test_a_folder_that_is_no_class_is_named_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "imagenet-a" / "n01498041" / "a.jpg")
    write(tmp_path / "imagenet-a" / "n0149804" / "a.jpg")
    with pytest.raises(DataError, match=r"'n0149804' is not a class .* Did you mean 'n01498041'"):
        opened("imagenet-a", tmp_path)


def test_a_class_outside_the_subset_is_refused(tmp_path: Path) -> None:
    outside = next(c.wnid for c in imagenet_classes() if "a" not in c.sets)
    write(tmp_path / "imagenet-a" / outside / "a.jpg")
    with pytest.raises(DataError, match=f"'{outside}' is not a class of this set"):
        opened("imagenet-a", tmp_path)


def test_missing_data_says_where_it_was_looked_for_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"looked for .*imagenet-a\. Get it: .* prepare imagenet-a"):
        opened("imagenet-a", tmp_path)
    with pytest.raises(DataError, match=r"--data-root DIR"):
        opened("imagenet-a", None)
    (tmp_path / "imagenet-a").mkdir()
    with pytest.raises(DataError, match="or none with images: looked for"):
        opened("imagenet-a", tmp_path)


def test_a_copy_elsewhere_is_the_same_set_and_a_changed_byte_is_another(tmp_path: Path) -> None:
    for k, wnid in enumerate(("n01440764", "n01443537")):
        write(tmp_path / "one/imagenet/val" / wnid / f"ILSVRC2012_val_{k}.png")
    first = opened("imagenet", tmp_path / "one").fingerprint
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for path in (tmp_path / "two").rglob("*.png"):
        os.utime(path, (0, 0))
    assert opened("imagenet", tmp_path / "two").fingerprint == first
    changed = tmp_path / "two/imagenet/val/n01443537/ILSVRC2012_val_1.png"
    size = changed.stat().st_size
    write(changed, (200, 10, 11))
    assert abs(changed.stat().st_size - size) < 10
    assert opened("imagenet", tmp_path / "two").fingerprint != first
    assert opened("imagenet", tmp_path / "one").fingerprint == first


def test_a_picture_that_is_replaced_after_planning_is_named_and_spoils_no_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is scored under the old one's fingerprint, in this store and in later ones."""
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "cache"))
    folder, preprocess = tmp_path / "imagenet-sketch" / "n01440764", Preprocess(size=32)
    for i in range(4):
        write(folder / f"{i}.png", (i, 10, 10))
    planned = opened("imagenet-sketch", tmp_path)
    old = [np.asarray(planned.image(i)) for i in range(4)]
    kept = (folder / "2.png").read_bytes()
    write(folder / "2.png", (99, 10, 10))
    with pytest.raises(DataError, match=r"n01440764/2\.png: other bytes\. It has changed since"):
        Pixels(planned, preprocess, pack=True)
    (folder / "2.png").write_bytes(kept)
    (pixels,) = Pixels(opened("imagenet-sketch", tmp_path), preprocess, pack=True).batches(
        in_order(4, 4)
    )
    np.testing.assert_array_equal(
        pixels, [preprocess.pixels(Image.fromarray(picture)) for picture in old]
    )


def test_an_interrupted_reading_keeps_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(6):
        write(tmp_path / "imagenet/val/n01440764" / f"ILSVRC2012_val_{k}.png", (k, 0, 0))
    expected = opened("imagenet", tmp_path).fingerprint
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "cache"))
    original, read = members.Folder.read, []

    def counted(self: Any, member: Any) -> bytes:
        read.append(member.name)
        if len(read) == 4:
            raise KeyboardInterrupt
        return original(self, member)

    monkeypatch.setattr(members.Folder, "read", counted)
    monkeypatch.setattr(members, "Readers", lambda: Readers(1))
    with pytest.raises(KeyboardInterrupt):
        opened("imagenet", tmp_path)
    before = set(read[:3])
    read.clear()
    read.extend(["-"] * 4)
    assert opened("imagenet", tmp_path).fingerprint == expected
    assert before.isdisjoint(read[4:])
    (index,) = (tmp_path / "cache/indices").glob("*.parquet")
    index.write_bytes(b"damaged")
    assert opened("imagenet", tmp_path).fingerprint == expected


def test_val_cartoon_drawing_and_c_share_photographs_by_file_name(tmp_path: Path) -> None:
    name = "n01440764/ILSVRC2012_val_00000293.JPEG"
    write(tmp_path / "imagenet/val" / name)
    write(tmp_path / "imagenet-cartoon" / name)
    for corruption in CORRUPTIONS:
        for severity in range(1, 6):
            write(tmp_path / "imagenet-c" / corruption / str(severity) / name)
    val, cartoon, c = (opened(n, tmp_path) for n in ("imagenet", "imagenet-cartoon", "imagenet-c"))
    assert set(val.source) == set(cartoon.source) == set(c.source)
    assert len(c) == 75
    assert len(set(c.group)) == 75
    shutil.rmtree(tmp_path / "imagenet-c" / "fog" / "3")
    with pytest.raises(DataError, match=r"lacks fog/3: the set needs all 75"):
        opened("imagenet-c", tmp_path)


def test_grey_cmyk_and_transparent_files_and_spaces_in_names(tmp_path: Path) -> None:
    folder = tmp_path / "imagenet-a" / "n01498041"
    folder.mkdir(parents=True)
    picture = Image.new("RGB", (40, 30))
    picture.convert("L").save(folder / "0.1 grey _ 0.5.jpg")
    picture.convert("CMYK").save(folder / "0.2 cmyk.jpg")
    picture.convert("RGBA").save(folder / "alpha.png")
    (folder / ".hidden.jpg").write_bytes(b"")
    images = opened("imagenet-a", tmp_path)
    assert len(images) == 3
    assert {images.image(i).mode for i in range(3)} == {"RGB"}


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff not a picture", "truncated"])
def test_a_file_that_does_not_decode_is_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "imagenet-a" / "n01498041" / "bad.jpg"
    path.parent.mkdir(parents=True)
    if content == "truncated":
        pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad.jpg: this image cannot be decoded"):
        opened("imagenet-a", tmp_path).image(0)


def write_objectnet(root: Path) -> None:
    """Three of its classes: one with three ids, one with one, one that is not ImageNet's."""
    for folder in ("chair", "air_freshener", "banana"):
        pixels = np.full((20, 24, 4), 255, np.uint8)
        pixels[..., 1:3] = 0
        pixels[2:-2, 2:-2] = (255, 0, 9, 255)
        path = root / "objectnet-1.0" / "images" / folder / "a b.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)


def test_objectnet_is_read_by_ids_with_its_border_off(tmp_path: Path) -> None:
    write_objectnet(tmp_path)
    images = opened("objectnet", tmp_path)
    found = [(images.classes[k], images.class_map[k]) for k in images.labels]
    assert found == [("banana Banana", (954,)), ("chair Chair", (423, 559, 765))]
    assert len(images.classes) == 113
    assert len({i for ids in images.class_map for i in ids}) == 125
    picture = np.asarray(images.image(0))
    assert picture.shape == (16, 20, 3)
    assert (picture == (255, 0, 9)).all()


def test_only_a_whole_ring_of_red_is_a_border() -> None:
    pixels = np.zeros((9, 9, 3), np.uint8)
    pixels[0] = pixels[-1] = (255, 0, 0)
    assert without_red_border(Image.fromarray(pixels)).size == (9, 9)
    pixels[:, 0] = pixels[:, -1] = (255, 0, 0)
    assert without_red_border(Image.fromarray(pixels)).size == (7, 7)
    everything = Image.new("RGB", (9, 9), (255, 0, 0))
    assert min(without_red_border(everything).size) >= 1


@pytest.mark.parametrize("trap", ["link", "deeper"])
def test_what_is_no_readable_image_is_named(tmp_path: Path, trap: str) -> None:
    folder = tmp_path / "imagenet-a" / "n01498041"
    write(folder / "a.jpg")
    if trap == "link":
        (folder / "bad.jpg").symlink_to("nowhere")
    else:
        write(folder / "bad" / "x.jpg")
    with pytest.raises(DataError, match=r"n01498041/bad"):
        opened("imagenet-a", tmp_path)


def test_the_suite_is_declared_in_full() -> None:
    spec = load_catalog().get("suite", "imagenet-rib").spec
    assert len(spec.members) == 8  # type: ignore[attr-defined]
    for name in (*spec.members, *spec.references):  # type: ignore[attr-defined]
        load_catalog().get("dataset", name)
    assert not load_catalog().get("dataset", "objectnet").spec.may_train  # type: ignore[attr-defined]


# --- with the development data: real photographs, real pretrained weights -------------------


def reference(data: Path) -> str:
    file = data / "weights" / "mobilenetv2_100_same.safetensors"
    return (
        f"timm:mobilenetv2_100,pad_type=same,weights={file},mean=0.5,std=0.5,crop_pct=0.875,"
        "interpolation=bicubic"
    )


@pytest.mark.slow
def test_a_pre_is_that_of_a_plain_torch_loop_to_the_image(shared: Path) -> None:
    """val, V2, R and ObjectNet as the README of the data says; the others by the loop below."""
    import timm
    from safetensors.torch import load_file
    from torchvision import transforms

    data = shared / "data"
    root = data / "imagenet-small"
    results = rib_harness.evaluate(
        suite="imagenet-rib", backbone=reference(data), dataset=MEMBERS, data_root=root
    )
    pre = results.matrix.pre
    assert (pre["imagenet"].correct, pre["imagenet"].n) == (314, 400)
    assert (pre["imagenet-v2"].correct, pre["imagenet-v2"].n) == (168, 200)
    assert (pre["imagenet-r"].correct, pre["imagenet-r"].n) == (38, 100)
    assert (pre["objectnet"].correct, pre["objectnet"].n) == (66, 90)

    model = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    state = load_file(data / "weights" / "mobilenetv2_100_same.safetensors")
    model.load_state_dict(state)
    transform = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    synsets = timm_list("imagenet_synsets.txt")
    subset = [synsets.index(w) for w in timm_list("imagenet_a_synsets.txt")]
    folders = {"imagenet-a": subset, "imagenet-sketch/sketch": None, "imagenet-drawing": None}
    for folder, ids in folders.items():
        correct = 0
        for file in sorted((root / folder).glob("*/*")):
            with torch.no_grad():
                z = model(transform(Image.open(file).convert("RGB"))[None])[0]
            best = int(z.argmax()) if ids is None else ids[int(z[ids].argmax())]
            correct += synsets[best] == file.parent.name
        assert pre[folder.split("/")[0]].correct == correct, folder


@pytest.mark.slow
def test_lwf_runs_to_a_whole_matrix_on_real_photographs(shared: Path, tmp_path: Path) -> None:
    data, val = shared / "data", tmp_path / "val"
    val.mkdir()
    for folder in sorted((data / "imagenet-small/imagenet/val").iterdir())[:40]:
        (val / folder.name).symlink_to(folder)
    results = rib_harness.run(
        suite="imagenet-rib",
        backbone=reference(data),
        method="lwf",
        dataset=["imagenet-a", "imagenet-r"],
        data_root=data / "imagenet-small",
        data=[f"imagenet:at={val}"],
        recipe={"lr": 1e-4, "max_steps": 2, "batch_size": 8, "warmup_steps": 0},
        limit=1,
    )
    assert results.complete
    for run in results:
        document = run.to_json()
        assert document["sources"] == {"used": 2, "of": 8}
        assert document["post"]["imagenet-a"]["imagenet-r"]["n"] == 100
        assert document["mri"] is not None
