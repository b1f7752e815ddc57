"""With the development data: each form gives the known accuracy, and a miss is explained.

Expected: the counts in the README of the data (plain torch, fp32), to the image.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rib_plugin_imagenet_ood.datasets import ShiftedImageNet
from rib_plugin_imagenet_ood.labels import classes_of
from rib_plugin_imagenet_ood.published import BY_NAME

import rib_harness
from rib_harness import ImageSet, MismatchError
from rib_harness.engine import diagnose

pytestmark = pytest.mark.slow

KNOWN = {"imagenet": "314/400", "imagenet-v2": "168/200", "imagenet-r": "38/100",
         "objectnet": "66/90"}  # fmt: skip

FOLDERS = {"imagenet": "imagenet/val", "imagenet-r": "imagenet-r", "objectnet": "objectnet-1.0",
           "imagenet-v2": "imagenet-v2/imagenetv2-matched-frequency-format-val"}  # fmt: skip


def evaluate(shared: Path, **settings: Any) -> rib_harness.Results:
    """The development MobileNetV2 on V2, R, ObjectNet and val."""
    weights = shared / "data/weights/mobilenetv2_100_same.safetensors"
    config: dict[str, Any] = {
        "suite": "imagenet-rib",
        "backbone": f"timm:mobilenetv2_100,pad_type=same,weights={weights},mean=0.5,std=0.5,"
        "crop_pct=0.875,interpolation=bicubic",
        "dataset": ["imagenet-v2", "imagenet-r", "objectnet"],
        "data_root": shared / "data/imagenet-small",
        "expect": KNOWN,
        "store": Path("store"),
    }
    return rib_harness.evaluate(**{**config, **settings})


def counts(results: rib_harness.Results) -> dict[str, str]:
    return {name: f"{c.correct}/{c.n}" for name, c in results.matrix.pre.items()}


def files_of(shared: Path, name: str) -> list[tuple[Path, Path]]:
    """Each picture, and its path below the set's folder."""
    folder = shared / "data/imagenet-small" / FOLDERS[name]
    found = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpeg", ".jpg", ".png")]
    return [(path, path.relative_to(folder)) for path in found]


def as_archives(shared: Path, folder: Path, name: str) -> str:
    if name in ("objectnet", "imagenet-r"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path, below in files_of(shared, name):
                archive.write(path, f"{name}/{below}")
        return str(folder / f"{name}.zip")
    with tarfile.open(folder / f"{name}.tar.gz", "w") as tar:  # plain, in spite of the name
        for path, below in files_of(shared, name):
            tar.add(path, f"{name}/{below}")
    return str(folder / f"{name}.tar.gz")


def as_webdataset(shared: Path, folder: Path, name: str) -> str:
    rank = {one.folder: i for i, one in enumerate(classes_of(BY_NAME[name]))}
    shards = folder / name
    shards.mkdir()
    for k in (0, 1):
        with tarfile.open(shards / f"{k}.tar", "w") as tar:
            for i, (path, _) in enumerate(files_of(shared, name)):
                if i % 2 == k:
                    label = str(rank[path.parent.name]).encode()
                    for suffix, data in ((path.suffix, path.read_bytes()), (".cls", label)):
                        info = tarfile.TarInfo(f"s{i:07}{suffix}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
    return str(shards)


def as_hub_dataset(shared: Path, folder: Path, name: str) -> str:
    import datasets

    rank = {one.folder: i for i, one in enumerate(classes_of(BY_NAME[name]))}
    rows = [
        {
            "image": {"bytes": path.read_bytes(), "path": path.name},
            "label": rank[path.parent.name],
        }
        for path, _ in files_of(shared, name)
    ]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(folder / name))
    return str(folder / name)


def opened(name: str, root: Path | None = None, **options: Any) -> ImageSet:
    return ShiftedImageNet(name=name, **options).open(root)


@pytest.mark.parametrize("form", [as_archives, as_webdataset, as_hub_dataset])
def test_every_form_has_the_fingerprint_of_the_folders(
    shared: Path, tmp_path: Path, form: Any
) -> None:
    """Of contents and labels: so a net scores on each what it scores on another, to the image."""
    for name in KNOWN:
        folders = opened(name, shared / "data/imagenet-small")
        assert opened(name, at=form(shared, tmp_path, name)).fingerprint == folders.fingerprint


def test_a_form_gives_the_known_accuracy_to_the_image(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "cache"))  # pictures are read anew
    data = [f"{name}:at={as_webdataset(shared, tmp_path, name)}" for name in KNOWN]
    results = evaluate(shared, data=data)
    assert counts(results) == KNOWN
    assert all(answer["agrees"] for answer in results[0].known_answers.values())


def test_a_wrong_class_order_a_second_resize_and_a_missing_tenth_are_each_named(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each is one more pass over all pictures; one that is wrong is enough here.
    one = dict(list(diagnose.NORMALISATIONS.items())[:1])
    monkeypatch.setattr(diagnose, "NORMALISATIONS", one)
    # V2 by somebody who numbered the folders in the order of their names as text.
    order = sorted(map(str, range(1000)))
    (tmp_path / "imagenet-v2").mkdir()
    with tarfile.open(tmp_path / "imagenet-v2/0.tar", "w") as tar:
        for i, (path, _) in enumerate(files_of(shared, "imagenet-v2")):
            label = str(order.index(path.parent.name)).encode()
            for suffix, data in ((".jpg", path.read_bytes()), (".cls", label)):
                info = tarfile.TarInfo(f"s{i:07}{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    # R without every tenth file, and val as crops that somebody made already.
    preprocess = rib_harness.Preprocess(size=224, resize=256)
    for name, folder in FOLDERS.items():
        if name not in ("imagenet", "imagenet-r"):
            continue
        for i, (path, below) in enumerate(files_of(shared, name)):
            target = tmp_path / folder / below
            target.parent.mkdir(parents=True, exist_ok=True)
            if name == "imagenet":
                pixels = preprocess.pixels(Image.open(path)).transpose(1, 2, 0)
                Image.fromarray(pixels).save(target.with_suffix(".png"))
            elif i % 10 != 3:
                shutil.copy(path, target)

    with pytest.raises(MismatchError) as caught:
        evaluate(
            shared,
            data_root=tmp_path,
            dataset=["imagenet-v2", "imagenet-r"],
            expect={name: KNOWN[name] for name in ("imagenet", "imagenet-v2", "imagenet-r")},
        )
    causes = {miss.dataset: miss.causes for miss in caught.value.misses}
    assert set(causes) == {"imagenet", "imagenet-v2", "imagenet-r"}
    assert causes["imagenet-v2"][0].startswith("wrong class order: with the labels as of classes "
                                               "sorted as text")  # fmt: skip
    assert "168 of 200" in causes["imagenet-v2"][0]
    assert causes["imagenet"][0].startswith("a second resize: with the centre crop only")
    assert "314 of 400" in causes["imagenet"][0]
    assert causes["imagenet-r"][0].startswith("missing files: 90 images of 100")
