"""Where a place holds several things that may be meant; and layouts, names and files as people
have them.

Every picture is one plain colour, which says which was read; the ids are ImageNet's: n01440764
(tench) is 0, n01443537 (goldfish) is 1.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rib_plugin_imagenet_ood.datasets import ImageNet, ImageNetC, ImageNetV2, ShiftedImageNet

from rib_harness import DataError, ImageSet

TENCH, GOLDFISH = "n01440764", "n01443537"


def picture(colour: str, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(out, form)
    return out.getvalue()


BLUE, RED, GREEN = picture("blue"), picture("red"), picture("lime")


def opened(at: Path, kind: Any = ImageNet, **options: Any) -> ImageSet:
    images: ImageSet = kind(at=str(at), **options).open(None)
    return images


def seen(images: ImageSet) -> list[tuple[str, int]]:
    """Colour and id of each image."""
    names = {(0, 0, 255): "blue", (255, 0, 0): "red", (0, 255, 0): "green"}

    def colour(i: int) -> str:
        mean = np.asarray(images.image(i)).mean((0, 1))
        return names[tuple(np.where(mean > 250, 255, np.where(mean < 5, 0, mean)).tolist())]

    return [(colour(i), images.class_map[images.labels[i]][0]) for i in range(len(images))]


def notes(images: ImageSet, *without: str) -> list[str]:
    """Those that are not about a set that is not whole."""
    usual = ("not whole", "its files' names do not say")
    return [note for note in images.notes if not note.startswith(usual)]


# --- columns of tables -------------------------------------------------------------------------


def saved(folder: Path, images: dict[str, bytes], **columns: Any) -> Path:
    """A saved dataset of one row: columns of images in this order, then others."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features, rows = {}, {}
    for name, data in images.items():
        features[name], rows[name] = datasets.Image(), [{"bytes": data, "path": None}]
    for name, value in columns.items():
        if isinstance(value, tuple):  # a number with its names
            features[name], rows[name] = datasets.ClassLabel(names=list(value[1])), [value[0]]
        else:
            kind = "string" if isinstance(value, str) else "int64"
            features[name], rows[name] = datasets.Value(kind), [value]
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    made.save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize(
    "columns",
    [("thumbnail", "image"), ("image", "thumbnail"), ("mask", "Image", "depth"),
     ("mask.png", "jpg"), ("image_small", "img")],
)  # fmt: skip
def test_the_column_whose_name_says_so_is_taken_wherever_it_stands(
    columns: tuple[str, ...], tmp_path: Path
) -> None:
    right = {"image", "Image", "jpg", "img"}
    at = saved(tmp_path / "x", {c: BLUE if c in right else RED for c in columns}, wnid=TENCH)
    images = opened(at)
    assert seen(images) == [("blue", 0)]
    (note,) = notes(images)
    assert note.startswith(f"pictures from '{(right & set(columns)).pop()}', not from ")
    assert all(column in note for column in columns)


@pytest.mark.parametrize(
    "columns",
    [("left", "right"), ("image_a", "image_b"), ("picture", "photo"), ("image", "img"),
     ("image", "photo"), ("jpg", "png"), ("photo", "thumbnail"), ("front", "side", "top")],
)  # fmt: skip
def test_columns_of_equally_likely_names_are_refused_and_one_can_be_named(
    columns: tuple[str, ...], tmp_path: Path
) -> None:
    colours = dict(zip(columns, (RED, BLUE, GREEN), strict=False))
    at = saved(tmp_path / "x", colours, wnid=TENCH)
    match = rf"may be the pictures: {', '.join(columns)}\. Name one: image={columns[0]}"
    with pytest.raises(DataError, match=match):
        opened(at)
    assert seen(opened(at, image=columns[1])) == [("blue", 0)]
    assert seen(opened(at, image=columns[0])) == [("red", 0)]
    assert opened(at, image=columns[1]).fingerprint != opened(at, image=columns[0]).fingerprint
    with pytest.raises(DataError, match=rf"image=imagf: there are no .* It has: {columns[0]}"):
        opened(at, image="imagf")


def test_a_path_beside_the_image_is_no_second_image(tmp_path: Path) -> None:
    at = saved(tmp_path / "x", {"scan": BLUE}, image_path="a.png", wnid=TENCH)
    assert seen(opened(at)) == [("blue", 0)]
    assert notes(opened(at)) == []


@pytest.mark.parametrize(
    ("columns", "taken"),
    [
        ({"label": 1}, 1),
        ({"labels": 1}, 1),
        ({"fine_label": 1}, 1),
        ({"label": GOLDFISH}, 1),
        ({"label": (0, [GOLDFISH, TENCH])}, 1),
        ({"coarse_label": 7, "label": 1}, 1),
        ({"class_name": "crane", "label": 1}, 1),
        ({"label": 7, "wnid": GOLDFISH}, 1),
    ],
)
def test_the_label_whose_name_says_so_is_taken(
    columns: dict[str, Any], taken: int, tmp_path: Path
) -> None:
    images = opened(saved(tmp_path / "x", {"image": BLUE}, **columns))
    assert seen(images) == [("blue", taken)]
    assert len(notes(images)) == (len(columns) > 1)


@pytest.mark.parametrize(
    "columns",
    [("label", "labels"), ("fine_label", "coarse_label"), ("label", "cls"), ("class", "target")],
)
def test_labels_of_equally_likely_names_are_refused_and_one_can_be_named(
    columns: tuple[str, str], tmp_path: Path
) -> None:
    at = saved(tmp_path / "x", {"image": BLUE}, **{columns[0]: 0, columns[1]: 1})
    match = rf"may be the labels: {columns[0]}, {columns[1]}\. Name one: label={columns[0]}"
    with pytest.raises(DataError, match=match):
        opened(at)
    assert [seen(opened(at, label=one)) for one in columns] == [[("blue", 0)], [("blue", 1)]]


def test_a_label_of_any_name_can_be_named(tmp_path: Path) -> None:
    at = saved(tmp_path / "x", {"image": BLUE}, what=GOLDFISH)
    with pytest.raises(DataError, match=r"Its columns: image, what\. Name one: label=COLUMN"):
        opened(at)
    assert seen(opened(at, label="what")) == [("blue", 1)]


def test_two_splits_of_one_meaning_are_refused_and_another_choice_is_told(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {name: datasets.load_from_disk(str(saved(tmp_path / name, {"image": data}, label=0)))
            for name, data in (("val", BLUE), ("test", RED), ("validation", GREEN))}  # fmt: skip
    datasets.DatasetDict(val=rows["val"], test=rows["test"]).save_to_disk(str(tmp_path / "two"))
    assert seen(opened(tmp_path / "two")) == [("blue", 0)]
    assert notes(opened(tmp_path / "two")) == ["split 'val', not test"]
    datasets.DatasetDict(rows).save_to_disk(str(tmp_path / "three"))
    with pytest.raises(DataError, match=r"has the splits val, test, validation; expected one of"):
        opened(tmp_path / "three")


# --- Parquet that `datasets` did not write -----------------------------------------------------


def struct(data: bytes | None, path: str | None) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": data, "path": path}], kind)


def parquet(folder: Path, name: str = "0.parquet", **columns: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)
    return folder


IMAGES: dict[str, Callable[[], pa.Array]] = {
    "a struct": lambda: struct(BLUE, "a.png"),
    "a struct without a path": lambda: pa.array([{"bytes": BLUE}]),
    "bytes": lambda: pa.array([BLUE]),
    "large binary": lambda: pa.array([BLUE], pa.large_binary()),
    "binary of one length": lambda: pa.array([BLUE], pa.binary(len(BLUE))),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_plain_parquet_says_of_no_column_that_it_holds_images(kind: str, tmp_path: Path) -> None:
    at = parquet(tmp_path / "x", thumbnail=pa.array([RED]), image=IMAGES[kind](), wnid=[TENCH])
    assert seen(opened(at)) == [("blue", 0)]


def test_a_column_of_bytes_that_are_no_picture_is_none(tmp_path: Path) -> None:
    at = parquet(tmp_path / "x", embedding=pa.array([b"\0" * 64]), scan=pa.array([BLUE]), label=[1])
    assert seen(opened(at)) == [("blue", 1)]
    assert notes(opened(at)) == []


def test_bytes_called_image_are_not_passed_over_for_a_column_that_is_declared(
    tmp_path: Path,
) -> None:
    """The thumbnail is one of `datasets`; the image was added later."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"thumbnail": datasets.Image(), "image": datasets.Value("binary"),
         "label": datasets.Value("int64")}
    )  # fmt: skip
    rows = {"thumbnail": [{"bytes": RED, "path": None}], "image": [BLUE], "label": [0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "x"))
    assert seen(opened(tmp_path / "x")) == [("blue", 0)]


def test_labels_may_be_a_dictionary(tmp_path: Path) -> None:
    label = pa.array([GOLDFISH]).dictionary_encode()
    assert seen(opened(parquet(tmp_path / "x", image=pa.array([BLUE]), wnid=label))) == [
        ("blue", 1)
    ]


@pytest.mark.parametrize("place", ["", "data"])
def test_a_path_in_a_table_is_relative_to_the_table_and_not_to_this_process(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = parquet(tmp_path / "x" / place, image=struct(None, "pictures/a.png"), wnid=[TENCH])
    for folder, data in ((at, BLUE), (tmp_path / "elsewhere", RED)):
        (folder / "pictures").mkdir(parents=True)
        (folder / "pictures/a.png").write_bytes(data)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert seen(opened(tmp_path / "x")) == [("blue", 0)]


def test_a_column_of_paths_can_be_named(tmp_path: Path) -> None:
    at = parquet(tmp_path / "x", file=["a.png"], wnid=[TENCH])
    (at / "a.png").write_bytes(BLUE)
    with pytest.raises(DataError, match="do not lie in folders of classes"):
        opened(at)
    assert seen(opened(at, image="file")) == [("blue", 0)]


def test_a_row_without_a_picture_is_named(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    at = parquet(tmp_path / "x", image=pa.array([{"bytes": BLUE}, None], kind), label=[0, 1])
    with pytest.raises(DataError, match="row 1 has no picture"):
        opened(at)


def test_digests_are_not_kept_where_any_picture_lies_elsewhere(tmp_path: Path) -> None:
    """The first row's bytes say nothing of the second's file."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": GREEN, "path": None}, {"bytes": None, "path": "a.png"}]
    at = parquet(tmp_path / "x", image=pa.array(rows, kind), label=[0, 1])
    (at / "a.png").write_bytes(BLUE)
    before = opened(at).fingerprint
    (at / "a.png").write_bytes(RED)
    assert opened(at).fingerprint != before
    assert seen(opened(at)) == [("green", 0), ("red", 1)]


def test_parquet_files_whose_names_say_two_splits_are_not_mixed(tmp_path: Path) -> None:
    for split, data in (("train", RED), ("val", BLUE)):
        parquet(tmp_path / "x", f"imagenet_{split}_0.parquet", image=pa.array([data]), label=[0])
    assert seen(opened(tmp_path / "x")) == [("blue", 0)]


def test_a_table_without_pictures_beside_folders_of_classes_is_no_harm(tmp_path: Path) -> None:
    at = parquet(tmp_path / "x", file=["a.png"], size=[3])
    files(at, {f"{TENCH}/a.png": BLUE})
    assert seen(opened(at)) == [("blue", 0)]


# --- WebDataset --------------------------------------------------------------------------------


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("members", "left"),
    [
        ({"a.jpg": BLUE, "a.mask.png": RED}, "1 .mask.png"),
        ({"a.mask.png": RED, "a.jpg": BLUE}, "1 .mask.png"),
        ({"a.JPG": BLUE, "a.Mask.PNG": RED}, "1 .mask.png"),
        ({"a.image.jpg": BLUE, "a.mask.png": RED}, "1 .mask.png"),
        ({"a.png": BLUE, "a.depth.png": RED, "a.seg.png": GREEN}, "1 .depth.png, 1 .seg.png"),
        ({"a.tif": BLUE, "a.thumbnail.jpg": RED}, "1 .thumbnail.jpg"),
        ({"a.input.png": BLUE}, ""),
    ],
)
def test_a_key_with_masks_is_one_image(
    members: dict[str, bytes], left: str, tmp_path: Path
) -> None:
    images = opened(tar(tmp_path / "0.tar", {**members, "a.cls": b"1"}))
    assert seen(images) == [("blue", 1)]
    assert [note.partition("left out: ")[2] for note in notes(images)] == ([left] if left else [])


@pytest.mark.parametrize(
    "kinds", [("jpg", "png"), ("rgb.png", "depth.png"), ("image.jpg", "jpg"), ("photo.jpg", "jpg")]
)
def test_two_pictures_of_a_key_are_refused_and_one_can_be_named(
    kinds: tuple[str, str], tmp_path: Path
) -> None:
    members = {f"a.{kinds[0]}": BLUE, f"a.{kinds[1]}": RED, "a.seg.png": GREEN, "a.cls": b"0"}
    at = tar(tmp_path / "0.tar", members)
    with pytest.raises(DataError, match=r"may be the pictures: .*Name one: image=") as caught:
        opened(at)
    assert all(kind in str(caught.value) for kind in kinds)
    assert seen(opened(at, image=kinds[0])) == [("blue", 0)]
    assert seen(opened(at, image=kinds[1])) == [("red", 0)]


def test_shards_may_have_pictures_of_several_suffixes(tmp_path: Path) -> None:
    members = {"a.jpg": BLUE, "a.cls": b"0", "b.png": RED, "b.cls": b"1", "b.mask.png": GREEN}
    assert seen(opened(tar(tmp_path / "0.tar", members))) == [("blue", 0), ("red", 1)]


def test_a_key_that_has_a_mask_only_is_no_image_and_told(tmp_path: Path) -> None:
    members = {"a.jpg": BLUE, "a.cls": b"0", "b.mask.png": RED, "b.cls": b"1"}
    images = opened(tar(tmp_path / "0.tar", members))
    assert seen(images) == [("blue", 0)]
    assert "1 of 2 labels have no picture" in notes(images)


def test_two_kinds_of_classes_are_refused_and_one_can_be_named(tmp_path: Path) -> None:
    at = tar(tmp_path / "0.tar", {"a.jpg": BLUE, "a.fine.cls": b"1", "a.coarse.cls": b"0"})
    with pytest.raises(DataError, match=r"the labels: coarse\.cls, fine\.cls\. Name one: label="):
        opened(at)
    assert seen(opened(at, label="fine.cls")) == [("blue", 1)]
    txt = tar(tmp_path / "1.tar", {"a.jpg": BLUE, "a.txt": b"1\n"})
    assert seen(opened(txt, label="txt")) == [("blue", 1)]


def test_a_file_that_ends_in_cls_makes_no_webdataset_of_folders(tmp_path: Path) -> None:
    at = files(tmp_path / "x", {f"{TENCH}/a.png": BLUE, "paper/article.cls": b"\\ProvidesClass"})
    assert seen(opened(at)) == [("blue", 0)]


@pytest.mark.parametrize("option", ["image", "label"])
def test_the_option_is_not_ignored_where_there_is_nothing_to_choose(
    option: str, tmp_path: Path
) -> None:
    at = files(tmp_path / "x", {f"{TENCH}/a.png": BLUE})
    for value in ("thumb", "png"):
        with pytest.raises(DataError, match=f"{option}={value} names a column"):
            opened(at, **{option: value})


# --- names -------------------------------------------------------------------------------------


def files(folder: Path, made: dict[str, bytes]) -> Path:
    for name, data in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


FORMS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "folder": files, "tar": tar, "zip": zipped
}  # fmt: skip
NAMES = (
    "photo\u00a0copy.jpg",
    "e\u0301te\u0301.jpg",
    "a\u200bb.png",
    "👩\u200d🎨.png",
    "\ufeff.png",
)


@pytest.mark.parametrize("form", FORMS)
def test_no_name_in_utf8_of_an_image_refuses_a_set(form: str, tmp_path: Path) -> None:
    made = {f"{TENCH}/{name}": BLUE for name in NAMES} | {f"{GOLDFISH}/{NAMES[0]}": RED}
    images = opened(FORMS[form](tmp_path / f"x.{form}", made))
    assert sorted(seen(images)) == [("blue", 0)] * len(NAMES) + [("red", 1)]
    assert notes(images) == []


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_image_refuses_no_set_and_is_counted(form: str, tmp_path: Path) -> None:
    made = {
        f"{TENCH}/a.png": BLUE,
        f"{TENCH}/Icon\r": b"",
        f"{GOLDFISH}/a.png": RED,
        f"{GOLDFISH}/notes\u200b.txt": b"no image",
        f"{GOLDFISH}/a.nef": b"raw",
        f"{GOLDFISH}/b.NEF": b"raw",
        "README.md": b"not beside images",
    }
    images = opened(FORMS[form](tmp_path / f"x.{form}", made))
    assert seen(images) == [("blue", 0), ("red", 1)]
    (note,) = notes(images)
    assert note.startswith("left out, as no pictures by their names: 2 .nef")
    assert "1 .txt" in note
    assert ".md" not in note
    # In an archive it is litter, as `__MACOSX` is: a name with a control is refused there.
    assert ("1 without a suffix" in note) == (form == "folder")


@pytest.mark.parametrize("name", [b"x\xff.txt", b"\xfe/\xff/notes", b"a\x1b[2J", b"tab\tname.doc"])
def test_not_even_a_name_that_is_no_text_refuses_a_folder(name: bytes, tmp_path: Path) -> None:
    at = files(tmp_path / "x", {f"{TENCH}/a.png": BLUE})
    odd = Path(os.fsdecode(os.fsencode(at / TENCH) + b"/" + name))
    try:
        odd.parent.mkdir(parents=True, exist_ok=True)
        odd.write_bytes(b"")
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    assert seen(opened(at)) == [("blue", 0)]


@pytest.mark.parametrize("form", ["tif", "gif", "jfif", "TIFF", "jp2", "ppm"])
def test_suffixes_that_pillow_reads_are_read(form: str, tmp_path: Path) -> None:
    kinds = {"tif": "TIFF", "gif": "GIF", "jfif": "JPEG", "TIFF": "TIFF", "jp2": "JPEG2000",
             "ppm": "PPM"}  # fmt: skip
    at = files(tmp_path / "x", {f"{TENCH}/photo.{form}": picture("blue", kinds[form])})
    assert seen(opened(at)) == [("blue", 0)]


def test_grey_of_16_bits_is_grey_in_a_set(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("I;16", (32, 32), 32_768).save(out, "PNG")
    images = opened(files(tmp_path / "x", {f"{TENCH}/grey16.png": out.getvalue()}))
    np.testing.assert_allclose(np.asarray(images.image(0)).mean((0, 1)), 127.5, atol=0.51)


# --- layouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_backslashes_may_stand_between_folders(form: str, tmp_path: Path) -> None:
    made = {"val\\": b"", f"val\\{TENCH}\\a.png": BLUE, f"val\\{GOLDFISH}\\b.png": RED}
    if form == "tar":
        del made["val\\"]
    images = opened(FORMS[form](tmp_path / f"x.{form}", made))
    assert seen(images) == [("blue", 0), ("red", 1)]


def test_a_backslash_in_a_word_of_a_name_stays(tmp_path: Path) -> None:
    """On Unix it is a character as any other; Info-ZIP tells by whether there is a slash."""
    images = opened(zipped(tmp_path / "x.zip", {f"{TENCH}/a\\b.png": BLUE}))
    assert seen(images) == [("blue", 0)]
    assert images.names[0].endswith(f"{TENCH}/a\\b.png")


@pytest.mark.parametrize("form", FORMS)
def test_imagenet_v2_may_lie_in_folders_of_wnids(form: str, tmp_path: Path) -> None:
    wnids = {f"v2/{TENCH}/x.png": BLUE, f"v2/{GOLDFISH}/x.png": RED}
    numbers = {"v2/0/x.png": BLUE, "v2/1/x.png": RED}
    images = opened(FORMS[form](tmp_path / f"x.{form}", wnids), ImageNetV2)
    assert seen(images) == [("blue", 0), ("red", 1)]
    assert images.fingerprint == opened(files(tmp_path / "n", numbers), ImageNetV2).fingerprint
    mixed = files(tmp_path / "m", {"1/x.png": RED, f"{TENCH}/x.png": BLUE})
    with pytest.raises(DataError, match="is not a class of this set"):
        opened(mixed, ImageNetV2)


def test_names_of_a_hub_copy_of_imagenet_v2_may_be_wnids(tmp_path: Path) -> None:
    for i, columns in enumerate(({"label": (0, [GOLDFISH])}, {"wnid": GOLDFISH})):
        at = saved(tmp_path / str(i), {"image": BLUE}, **columns)
        assert seen(opened(at, ImageNetV2)) == [("blue", 1)]


def test_the_samples_of_imagenet_v2_in_wnid_folders_are_kept_apart(tmp_path: Path) -> None:
    for variant, data in (("matched-frequency", BLUE), ("threshold0.7", RED)):
        files(tmp_path / "x", {f"imagenet-{variant}-format-val/{TENCH}/x.png": data})
    assert seen(opened(tmp_path / "x", ImageNetV2)) == [("blue", 0)]
    assert seen(opened(tmp_path / "x", ImageNetV2, variant="threshold0.7")) == [("red", 0)]
    with pytest.raises(DataError, match=r"is imagenet-threshold0\.7-format-val, not"):
        opened(tmp_path / "x/imagenet-threshold0.7-format-val", ImageNetV2)


@pytest.mark.parametrize(
    "name",
    ["ILSVRC2012_val_00000001_{}.JPEG", "val-1-{}.jpg", "1.{}.png", "00000001{}.JPEG", "{}_1.JPEG",
     "a {}.jpeg"],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["", "val/"])
def test_a_flat_set_may_have_its_classes_in_the_files_names(
    folder: str, name: str, tmp_path: Path
) -> None:
    made = {f"{folder}{name.format(TENCH)}": BLUE, f"{folder}{name.format(GOLDFISH.upper())}": RED}
    assert seen(opened(files(tmp_path / "x", made))) == [("blue", 0), ("red", 1)]


def test_names_with_two_classes_or_none_are_refused(tmp_path: Path) -> None:
    for i, name in enumerate((f"{TENCH}_to_{GOLDFISH}.png", "x.png")):
        at = files(tmp_path / str(i), {f"1_{TENCH}.png": BLUE, name: RED})
        with pytest.raises(DataError, match="do not lie in folders of classes"):
            opened(at)


VAL = "ILSVRC2012_val_0000000{}"
HEAD = "ImageId,PredictionString\n"


def kaggle(folder: Path, table: str, n: int = 2, at: str = "ILSVRC/Data/CLS-LOC/val") -> Path:
    made = {f"{at}/{VAL.format(i)}.JPEG": (BLUE, RED)[i - 1] for i in range(1, n + 1)}
    return files(folder, {**made, "LOC_val_solution.csv": table.encode()})


ROWS = f"{VAL.format(1)},{TENCH} 1 2 3 4 {TENCH} 5 6 7 8 \n{VAL.format(2)},{GOLDFISH} 1 2 3 4\n"


@pytest.mark.parametrize("table", [HEAD + ROWS, "\ufeff" + HEAD + ROWS.replace("\n", "\r\n")])
@pytest.mark.parametrize("place", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC/val"])
def test_kaggles_table_says_the_classes_of_the_flat_files(
    place: str, table: str, tmp_path: Path
) -> None:
    images = opened(kaggle(tmp_path / "x", table) / place)
    assert seen(images) == [("blue", 0), ("red", 1)]
    assert images.source[0] == f"imagenet-val/{VAL.format(1)}"


def test_kaggles_archive_is_read_in_place(tmp_path: Path) -> None:
    folder = kaggle(tmp_path / "x", HEAD + ROWS)
    made = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    images = opened(zipped(tmp_path / "x.zip", made))
    assert seen(images) == [("blue", 0), ("red", 1)]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (HEAD + ROWS.splitlines()[0] + "\n", rf"has no class for {VAL.format(2)}"),
        (HEAD + ROWS + f"{VAL.format(1)},{GOLDFISH} 1 2 3 4\n", rf"{VAL.format(1)}: expected one"),
        (HEAD + f"{VAL.format(1)},{TENCH} 1 2 3 4 {GOLDFISH} 1 2 3 4\n", "expected one class"),
        (HEAD + f"{VAL.format(1)},\n", "expected one class"),
        ("Id,Class\na,b\n", r"is damaged: expected the columns ImageId and PredictionString"),
        (HEAD + f"{VAL.format(1)}\n", "is damaged"),
        ("", "has no class for"),
        (HEAD + ROWS.replace(GOLDFISH, "n99999999"), "'n99999999' is not a class of this set"),
    ],
)
def test_a_table_that_does_not_say_each_files_class_is_refused(
    table: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        opened(kaggle(tmp_path / "x", table))


def test_two_tables_that_differ_are_refused(tmp_path: Path) -> None:
    folder = kaggle(tmp_path / "x", HEAD + ROWS)
    other = HEAD + ROWS.replace(GOLDFISH, TENCH)
    (folder / "ILSVRC/LOC_val_solution.csv").write_text(other)
    with pytest.raises(DataError, match=rf"{VAL.format(2)}\.JPEG has two classes: .*Move one away"):
        opened(folder)


# --- places ------------------------------------------------------------------------------------


def test_two_places_below_the_data_folder_are_refused_and_one_can_be_named(tmp_path: Path) -> None:
    files(tmp_path, {f"imagenet/val/{TENCH}/a.png": BLUE})
    assert seen(ImageNet().open(tmp_path)) == [("blue", 0)]
    (tmp_path / "imagenet-val").symlink_to("imagenet/val")  # the same place
    assert seen(ImageNet().open(tmp_path)) == [("blue", 0)]
    (tmp_path / "imagenet-val").unlink()
    files(tmp_path, {f"imagenet-val/{TENCH}/a.png": RED})
    with pytest.raises(DataError, match=r"may both be the set\. Name one: --data imagenet:at="):
        ImageNet().open(tmp_path)
    assert seen(opened(tmp_path / "imagenet-val")) == [("red", 0)]


def test_what_was_chosen_is_in_no_key_since_the_content_is(tmp_path: Path) -> None:
    """A copy whose column has another name has the same results."""
    from rib_harness import load_catalog

    catalog = load_catalog()
    plain = catalog.bind("dataset", "imagenet")
    chosen = catalog.bind("dataset", "imagenet:image=mask.png,label=wnid")
    assert chosen.options["image"] == "mask.png"
    assert chosen.key_fields() == plain.key_fields()
    assert not {"image", "label"} & set(plain.key_fields()["options"])
    assert chosen.id == "imagenet-ood/imagenet:image=mask.png,label=wnid"


def test_sets_without_columns_refuse_the_options(tmp_path: Path) -> None:
    at = files(tmp_path / "x", {f"fog/1/{TENCH}/a.png": BLUE})
    with pytest.raises(DataError, match="image=x names a column"):
        opened(at, ImageNetC, image="x")
    at = files(tmp_path / "y", {"n01498041/a.png": BLUE})
    assert seen(opened(at, lambda **o: ShiftedImageNet(name="imagenet-a", **o))) == [("blue", 6)]
