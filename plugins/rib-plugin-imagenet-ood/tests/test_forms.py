"""The sets in the forms in which people have them: always the same rows.

Expected values: the development data's own folders, read here without the plugin; ids from timm's
lists and from ObjectNet's own mapping files; words of the classes from torchvision.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rib_plugin_imagenet_ood.datasets import ImageNet, ImageNetC, ImageNetV2, ShiftedImageNet
from rib_plugin_imagenet_ood.published import BY_NAME

from rib_harness import DataError, ImageSet

#: Where a set lies in the development data, and the folder that wraps it in its official archive.
SLOW = pytest.mark.slow
PLACES = {
    "imagenet": ("imagenet/val", "val/"),
    "imagenet-v2": (
        "imagenet-v2/imagenetv2-matched-frequency-format-val",
        "imagenetv2-matched-frequency-format-val/",
    ),
    "imagenet-a": ("imagenet-a", "imagenet-a/"),
    "imagenet-r": ("imagenet-r", "imagenet-r/"),
    "imagenet-sketch": ("imagenet-sketch/sketch", "sketch/"),
    "objectnet": ("objectnet-1.0/images", "objectnet-1.0/images/"),
    "imagenet-cartoon": ("imagenet-cartoon", "imagenet-cartoon/"),
}
FROM_VAL = ("imagenet", "imagenet-cartoon")

#: The families of ImageNet-C: shared/spec/datasets.md, from its Zenodo record.
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("frost", "snow", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}


@dataclass(frozen=True)
class Picture:
    """A file of the development data; `ids` and `rank` are those of its class."""

    folder: str
    file: str
    data: bytes
    ids: tuple[int, ...]
    rank: int


Files = list[tuple[str, bytes]]


def timm_list(name: str) -> list[str]:
    spec = find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "data" / "_info" / name).read_text().split()


@lru_cache(maxsize=16)
def classes(data: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Folder → ids, in the order of the set's classes."""
    synsets = timm_list("imagenet_synsets.txt")
    if name == "imagenet-v2":
        return {str(i): (i,) for i in range(1000)}
    if name == "objectnet":
        mappings = data / "imagenet-small/objectnet-1.0/mappings"
        labels = json.loads((mappings / "folder_to_objectnet_label.json").read_text())
        numbers = json.loads((data / "objectnet_label_ids.json").read_text())
        ids: dict[int, list[int]] = {}
        for one, number in json.loads(
            (mappings / "imagenet_id_to_objectnet_id.json").read_text()
        ).items():
            ids.setdefault(number, []).append(int(one))
        found = {folder: ids.get(numbers[label], []) for folder, label in labels.items()}
        return {folder: tuple(sorted(found[folder])) for folder in sorted(found) if found[folder]}
    subset = {"imagenet-a": "imagenet_a_synsets.txt", "imagenet-r": "imagenet_r_synsets.txt"}
    wnids = sorted(timm_list(subset[name])) if name in subset else synsets
    return {wnid: (synsets.index(wnid),) for wnid in wnids}


@lru_cache(maxsize=16)
def pictures(data: Path, name: str) -> list[Picture]:
    """All of a set's development images, in an order that means nothing."""
    known = classes(data, name)
    rank = {folder: i for i, folder in enumerate(known)}
    files = sorted((data / "imagenet-small" / PLACES[name][0]).glob("*/*"))
    random.Random(0).shuffle(files)
    return [
        Picture(f.parent.name, f.name, f.read_bytes(), known[f.parent.name], rank[f.parent.name])
        for f in files
    ]


def hash_of(picture: Image.Image) -> str:
    return hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()


@lru_cache(maxsize=16)
def truth(data: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Hash of a picture's pixels → ids of its class; ObjectNet's border is 2 pixels (README)."""
    made = {}
    for one in pictures(data, name):
        rgb = Image.open(io.BytesIO(one.data)).convert("RGB")
        if name == "objectnet":
            rgb = rgb.crop((2, 2, rgb.width - 2, rgb.height - 2))
        made[hash_of(rgb)] = one.ids
    assert len(made) == len(pictures(data, name))
    return made


def opened(name: str, root: Path | None, **options: Any) -> ImageSet:
    kinds: dict[str, Any] = {
        "imagenet": ImageNet,
        "imagenet-v2": ImageNetV2,
        "imagenet-c": ImageNetC,
    }
    if "at" in options:
        options["at"] = str(options["at"])
    dataset = kinds[name](**options) if name in kinds else ShiftedImageNet(name=name, **options)
    images: ImageSet = dataset.open(root)
    return images


# --- one function a form: it writes the set below a folder and says where it is ----------------


def named(found: Iterable[Picture], prefix: str) -> Files:
    return [(f"{prefix}{one.folder}/{one.file}", one.data) for one in found]


def write_folder(folder: Path, files: Files) -> Path:
    for name, data in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_tar(path: Path, files: Files) -> Path:
    """Uncompressed, with entries for the folders, as `tar cf` writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seen = set()
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files:
            for parent in reversed(Path(name).parents[:-1]):
                if parent not in seen:
                    seen.add(parent)
                    entry = tarfile.TarInfo(f"{parent}/")
                    entry.type = tarfile.DIRTYPE
                    tar.addfile(entry)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, files: Files, how: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", how) as archive:
        for folder in sorted({f"{Path(name).parent}/" for name, _ in files}):
            archive.writestr(folder, b"")
        for name, data in files:
            archive.writestr(name, data)
    return path


def hub_rows(found: list[Picture], label: Any, values: list[Any], column: str = "label") -> Any:
    """A `datasets.Dataset` of pictures with their names, and one column more."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), column: label})
    images = [{"bytes": one.data, "path": one.file} for one in found]
    return datasets.Dataset.from_dict({"image": images, column: values}, features=features)


def class_label(names: Iterable[str]) -> Any:
    return pytest.importorskip("datasets").ClassLabel(names=list(names))


def integer() -> Any:
    return pytest.importorskip("datasets").Value("int64")


def text() -> Any:
    return pytest.importorskip("datasets").Value("string")


def saved(rows: Any, folder: Path) -> Path:
    rows.save_to_disk(str(folder))
    return folder


def shards(found: list[Picture], paths: list[Path], key: Callable[[int, Picture], str],
           number: Callable[[Picture], int]) -> None:  # fmt: skip
    """A WebDataset: KEY.jpg or KEY.png beside KEY.cls, dealt out to several tars."""
    for part, path in enumerate(paths):
        files: Files = []
        for i, one in enumerate(found[part :: len(paths)]):
            suffix = ".png" if one.file.endswith(".png") else ".jpg"
            stem = key(i * len(paths) + part, one)
            files += [(f"{stem}{suffix}", one.data), (f"{stem}.cls", str(number(one)).encode())]
        write_tar(path, files)


def as_folder(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    return write_folder(to, named(found, PLACES[name][1])) / PLACES[name][1].split("/")[0]


def as_tar(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    return write_tar(to / "official.tar", named(found, PLACES[name][1]))


def as_bare_tar(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    """As `tar cf x.tar .` writes it."""
    return write_tar(to / "bare.tar", named(found, "./"))


def as_bare_tar_called_gz(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    return write_tar(to / "plain.tar.gz", named(found, ""))


def as_stored_zip(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    return write_zip(to / "stored.zip", named(found, PLACES[name][1]), zipfile.ZIP_STORED)


def as_deflated_zip(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    return write_zip(to / "deflated.zip", named(found, PLACES[name][1]), zipfile.ZIP_DEFLATED)


def as_saved_by_name(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    label = class_label(classes(data, name))
    return saved(hub_rows(found, label, [one.rank for one in found]), to / "saved")


def as_saved_by_shuffled_name(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    folders = list(classes(data, name))
    random.Random(1).shuffle(folders)
    numbers = [folders.index(one.folder) for one in found]
    return saved(hub_rows(found, class_label(folders), numbers), to / "saved")


def as_saved_by_rank(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    return saved(hub_rows(found, integer(), [one.rank for one in found]), to / "saved")


def as_saved_by_id(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    """Where a class has several ids, any of them may stand there."""
    return saved(hub_rows(found, integer(), [one.ids[-1] for one in found]), to / "saved")


def as_saved_by_folder(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    """As axiong/imagenet-r has it: the WNID as text."""
    rows = hub_rows(found, text(), [one.folder for one in found], "wnid")
    return saved(rows.add_column("class_name", ["crane"] * len(found)), to / "saved")


def as_saved_paths(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    """Rows that point to files instead of holding their bytes."""
    datasets = pytest.importorskip("datasets")
    place = write_folder(to / "files", named(found, ""))
    paths = [str(place / one.folder / one.file) for one in found]
    features = datasets.Features({"image": datasets.Image(), "label": integer()})
    rows = {"image": paths, "label": [one.rank for one in found]}
    return saved(datasets.Dataset.from_dict(rows, features=features), to / "saved")


def as_parquet(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    (to / "hub/data").mkdir(parents=True)
    half = len(found) // 2
    for part, some in enumerate((found[:half], found[half:])):
        rows = hub_rows(some, integer(), [one.rank for one in some])
        rows.to_parquet(str(to / f"hub/data/test-0000{part}-of-00002.parquet"))
    return to / "hub"


def as_webdataset(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    paths = [to / "wds/shard-000000.tar", to / "wds/shard-000001.tar"]
    if name in FROM_VAL:
        shards(found, paths, lambda _, one: Path(one.file).stem, lambda one: one.ids[0])
    else:
        shards(found, paths, lambda i, _: f"{i:06d}", lambda one: one.ids[0])
    return to / "wds"


def as_clip_benchmark(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    """As LAION-AI/CLIP_benchmark's webdataset_builder.py writes it; ranks of sorted folders."""
    place = to / "wds_clip"
    paths = [place / "test/0.tar", place / "test/1.tar"]
    shards(found, paths, lambda i, _: f"s{i:07d}", lambda one: one.rank)
    (place / "test/nshards.txt").write_text("2\n")
    (place / "classnames.txt").write_text("crane\n")
    (place / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    return place


def as_saved_webdataset(data: Path, name: str, found: list[Picture], to: Path) -> Path:
    """As `datasets` itself loads a WebDataset: columns jpg (or png), cls, __key__, __url__."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    place = as_webdataset(data, name, found, to)
    files = sorted(map(str, place.glob("*.tar")))
    rows = datasets.load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=str(to / "cache")
    )
    return saved(rows, to / "saved")


Form = Callable[[Path, str, list[Picture], Path], Path]
#: Forms that keep the files' names.
WITH_NAMES: list[Form] = [
    as_folder, as_tar, as_bare_tar, as_bare_tar_called_gz, as_stored_zip, as_deflated_zip,
    as_saved_by_name, as_saved_by_shuffled_name, as_saved_by_rank, as_saved_by_id,
    as_saved_paths, as_parquet, as_webdataset, as_saved_webdataset,
]  # fmt: skip
WITHOUT_NAMES: list[Form] = [as_clip_benchmark]
CASES = [(form, name) for form in [*WITH_NAMES, *WITHOUT_NAMES] for name in PLACES] + [
    (as_saved_by_folder, name) for name in PLACES if name not in ("imagenet-v2", "objectnet")
]


def same_set(data: Path, name: str, images: ImageSet, every: bool = False) -> None:
    """Nothing tells it from the development data's own folder."""
    folder = opened(name, None, at=data / "imagenet-small" / PLACES[name][0])
    assert images.fingerprint == folder.fingerprint
    np.testing.assert_array_equal(images.labels, folder.labels)
    np.testing.assert_array_equal(images.group, folder.group)
    assert images.classes == folder.classes
    ids = [tuple(sorted(images.class_map[label])) for label in images.labels]
    files = {hashlib.sha256(one.data).hexdigest(): one.ids for one in pictures(data, name)}
    assert list(images.contents) == list(folder.contents)
    assert dict(zip(images.contents, ids, strict=True)) == files
    rows = range(len(images)) if every else range(0, len(images), len(images) // 8)
    for i in rows:
        hashed = hash_of(images.image(i))
        assert hashed == hash_of(folder.image(i))
        assert truth(data, name)[hashed] == ids[i]


def case_id(value: Any) -> str:
    return value if isinstance(value, str) else value.__name__.removeprefix("as_")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        # Every form of one set, and every set in one form, on each run.
        pytest.param(form, name, marks=() if name == "imagenet-r" or form is as_tar else SLOW)
        for form, name in CASES
    ],
    ids=case_id,
)
def test_every_form_gives_the_same_rows(
    form: Form, name: str, shared: Path, tmp_path: Path
) -> None:
    data = shared / "data"
    at = form(data, name, pictures(data, name), tmp_path)
    same_set(data, name, opened(name, None, at=at))


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_every_pixel_of_every_row_is_the_same_in_every_form(
    name: str, shared: Path, tmp_path: Path
) -> None:
    """So every number that a model gets is the same too."""
    data = shared / "data"
    for form in (as_deflated_zip, as_tar, as_parquet, as_webdataset, as_clip_benchmark):
        at = form(data, name, pictures(data, name), tmp_path / form.__name__)
        same_set(data, name, opened(name, None, at=at), every=True)


@pytest.mark.parametrize("form", WITH_NAMES, ids=case_id)
def test_every_form_that_keeps_names_says_which_photograph_of_val_it_is(
    form: Form, shared: Path, tmp_path: Path
) -> None:
    data = shared / "data"
    for name in FROM_VAL:
        found = pictures(data, name)
        images = opened(name, None, at=form(data, name, found, tmp_path / name))
        expected = {(one.ids, f"imagenet-val/{one.file.split('.')[0]}") for one in found}
        came = zip((images.class_map[k] for k in images.labels), images.source, strict=True)
        assert {(ids, str(source)) for ids, source in came} == expected
        assert not any("which photographs" in note for note in images.notes)


def test_a_form_without_names_says_so_and_takes_no_two_pictures_for_one(
    shared: Path, tmp_path: Path
) -> None:
    data = shared / "data"
    at = as_clip_benchmark(data, "imagenet", pictures(data, "imagenet"), tmp_path)
    images = opened("imagenet", None, at=at)
    assert len(set(images.source)) == len(images)
    assert any("which photographs" in note for note in images.notes)


def test_a_form_without_names_has_the_same_fingerprint_also_with_several_a_class(
    shared: Path, tmp_path: Path
) -> None:
    data = shared / "data"
    found = [
        Picture("n01440764", one.file, one.data, (0,), 0) for one in pictures(data, "imagenet")[:6]
    ]
    prints = {
        form: opened("imagenet", None, at=form(data, "imagenet", found, tmp_path)).fingerprint
        for form in (as_folder, as_tar, as_clip_benchmark)
    }
    assert prints[as_tar] == prints[as_folder]
    assert prints[as_clip_benchmark] == prints[as_folder]


# --- below a data root -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLACES)
def test_each_folder_that_is_promised_is_found_below_the_data_root(
    name: str, shared: Path, tmp_path: Path
) -> None:
    data = shared / "data"
    found = pictures(data, name)
    inner = "images/" if name == "objectnet" else ""
    for i, folder in enumerate(BY_NAME[name].folders):
        root = tmp_path / str(i)
        write_folder(root / folder, named(found, inner))
        same_set(data, name, opened(name, root))


@pytest.mark.parametrize("place", ["{name}/{file}", "{file}"])
@pytest.mark.parametrize("name", PLACES)
def test_each_archive_that_is_promised_is_read_in_place_below_the_data_root(
    name: str, place: str, shared: Path, tmp_path: Path
) -> None:
    """Under its official name; ImageNet-V2's is a plain tar in spite of it."""
    data = shared / "data"
    file = BY_NAME[name].archives[0].name
    files = named(pictures(data, name), PLACES[name][1])
    files.append((f"{PLACES[name][1].split('/')[0]}/README.txt", b"for people"))
    path = tmp_path / place.format(name=name, file=file)
    if file.endswith(".zip"):
        write_zip(path, files, zipfile.ZIP_DEFLATED)
    else:
        write_tar(path, files)
    same_set(data, name, opened(name, tmp_path))


@pytest.mark.parametrize(
    "form", [as_saved_by_rank, as_parquet, as_webdataset, as_clip_benchmark], ids=case_id
)
@pytest.mark.parametrize("name", ["imagenet", "imagenet-v2", "imagenet-a", "objectnet"])
def test_a_hub_dataset_or_shards_are_found_below_the_data_root(
    form: Form, name: str, shared: Path, tmp_path: Path
) -> None:
    data = shared / "data"
    made = form(data, name, pictures(data, name), tmp_path / "made")
    target = tmp_path / "root" / name
    target.parent.mkdir()
    made.rename(target)
    same_set(data, name, opened(name, tmp_path / "root"))


def test_the_published_names_are_the_official_ones() -> None:
    """File names and MD5 as the authors' pages have them (shared/spec/datasets.md)."""
    official = {
        "imagenet": ("ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622"),
        "imagenet-a": ("imagenet-a.tar", "c3e55429088dc681f30d81f4726b6595"),
        "imagenet-r": ("imagenet-r.tar", "a61312130a589d0ca1a8fca1f2bd3337"),
        "objectnet": ("objectnet-1.0.zip", "522aa986a604c41ea641411c1d0a292e"),
        "imagenet-cartoon": ("imagenet-cartoon.tar.gz", "a4987ee6efda553299419f47e59a7274"),
        "imagenet-drawing": ("imagenet-drawing.tar.gz", "3fb1206b6e3190d0159e5dc01c0f97ab"),
    }
    for name, expected in official.items():
        first = BY_NAME[name].archives[0]
        assert (first.name, first.md5) == expected
    assert BY_NAME["imagenet-v2"].archives[0].name == "imagenetv2-matched-frequency.tar.gz"
    assert BY_NAME["imagenet-sketch"].archives[0].name == "ImageNet-Sketch.zip"
    assert {a.name for a in BY_NAME["imagenet-c"].archives} == {
        "noise.tar", "blur.tar", "weather.tar", "digital.tar"
    }  # fmt: skip


def test_a_compressed_archive_says_that_it_must_be_unpacked(shared: Path, tmp_path: Path) -> None:
    """ImageNet-Cartoon's and -Drawing's may be compressed, as their names say."""
    data = shared / "data"
    plain = as_tar(data, "imagenet-cartoon", pictures(data, "imagenet-cartoon")[:2], tmp_path)
    path = tmp_path / "imagenet-cartoon.tar.gz"
    with tarfile.open(plain) as source, tarfile.open(path, "w:gz") as tar:
        for member in source:
            tar.addfile(member, source.extractfile(member) if member.isreg() else None)
    with pytest.raises(DataError, match=r"cartoon\.tar\.gz is compressed.*data prepare"):
        opened("imagenet-cartoon", tmp_path)


# --- splits ------------------------------------------------------------------------------------


def test_of_several_splits_in_a_hub_copy_the_right_one_is_taken(
    shared: Path, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    data = shared / "data"
    found = pictures(data, "imagenet")
    half = {"train": found[:9], "validation": found[9:], "test": found[:5]}
    rows = {
        split: hub_rows(
            some, integer(), [one.rank for one in some] if split != "test" else [-1] * 5
        )
        for split, some in half.items()
    }
    datasets.DatasetDict(rows).save_to_disk(str(tmp_path / "dict"))
    (tmp_path / "parquet/data").mkdir(parents=True)
    for split, one in rows.items():
        one.to_parquet(str(tmp_path / f"parquet/data/{split}-00000-of-00001.parquet"))
    alone = opened("imagenet", None, at=as_folder(data, "imagenet", found[9:], tmp_path))
    for place in ("dict", "parquet"):
        images = opened("imagenet", None, at=tmp_path / place)
        assert images.fingerprint == alone.fingerprint
        assert len(opened("imagenet", None, at=tmp_path / place, split="train")) == 9


@pytest.mark.parametrize("pattern", ["{split}/0.tar", "imagenet1k-{split}-0000.tar"])
@pytest.mark.parametrize("split", ["validation", "val", "test"])
def test_of_several_splits_in_a_webdataset_the_right_one_is_taken(
    pattern: str, split: str, shared: Path, tmp_path: Path
) -> None:
    """As clip-benchmark/wds_imagenet1k (folders) and timm/imagenet-1k-wds (names) have them."""
    data = shared / "data"
    found = pictures(data, "imagenet")
    for which, some in (("train", found[:9]), (split, found[9:])):
        path = tmp_path / "wds" / pattern.format(split=which)
        shards(some, [path], lambda _, one: Path(one.file).stem, lambda one: one.rank)
    sizes = [
        len(opened("imagenet", None, at=tmp_path / "wds", split=which))
        for which in ("val", "train")
    ]
    assert sizes == [391, 9]


@pytest.mark.parametrize("name", ["imagenet", "imagenet-a"])
def test_shards_with_the_customary_name_are_found(name: str, shared: Path, tmp_path: Path) -> None:
    """`imagenet-val-{000000..000049}.tar`, as webdataset's own ImageNet example writes it."""
    data = shared / "data"
    stem = "imagenet-val" if name == "imagenet" else name
    paths = [tmp_path / f"{stem}-{part:06d}.tar" for part in range(2)]
    shards(pictures(data, name), paths, lambda _, one: one.file.split(".")[0]
           if name == "imagenet" else hashlib.md5(one.data).hexdigest(),
           lambda one: one.rank)  # fmt: skip
    same_set(data, name, opened(name, None, at=tmp_path))


def test_a_single_shard_can_be_given(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    path = tmp_path / "imagenet-r-000000.tar"
    found = pictures(data, "imagenet-r")
    shards(found, [path], lambda i, _: f"{i:06d}", lambda one: one.rank)
    same_set(data, "imagenet-r", opened("imagenet-r", None, at=path))


# --- ImageNet-C --------------------------------------------------------------------------------


def c_files(shared: Path, family: str) -> Files:
    root = shared / "data/imagenet-small/imagenet-c"
    return [
        (str(path.relative_to(root)), path.read_bytes())
        for corruption in FAMILIES[family]
        for path in sorted((root / corruption).glob("*/*/*"))
    ]


def extra_files() -> Files:
    """Two photographs of the four extra corruptions."""
    made = []
    for corruption in FAMILIES["extra"]:
        for severity in range(1, 6):
            for k, wnid in enumerate(("n01440764", "n01443537")):
                seed = hashlib.sha256(f"{corruption}{severity}{k}".encode()).digest()
                pixels = np.random.default_rng(list(seed)).integers(0, 256, (224, 224, 3), np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "JPEG")
                name = f"{corruption}/{severity}/{wnid}/ILSVRC2012_val_0000000{k}.JPEG"
                made.append((name, buffer.getvalue()))
    return made


def c_rows(images: ImageSet) -> Counter[tuple[str, int]]:
    pairs = zip(images.group.tolist(), images.labels.tolist(), strict=True)
    return Counter((group, images.class_map[label][0]) for group, label in pairs)


def c_truth(files: Files) -> Counter[tuple[str, int]]:
    synsets = timm_list("imagenet_synsets.txt")
    parts = [name.split("/") for name, _ in files]
    return Counter((f"{part[0]}/{part[1]}", synsets.index(part[2])) for part in parts)


@pytest.mark.parametrize("prefix", ["", "./", "blur/"])
def test_imagenet_c_is_the_same_from_its_folder_and_its_four_tars(
    prefix: str, shared: Path, tmp_path: Path
) -> None:
    everything: Files = []
    for family in ("noise", "blur", "weather", "digital"):
        files = c_files(shared, family)
        everything += files
        write_tar(
            tmp_path / f"imagenet-c/{family}.tar", [(prefix + name, data) for name, data in files]
        )
    folder = opened("imagenet-c", shared / "data/imagenet-small")
    assert c_rows(folder) == c_truth(everything)
    for images in (
        opened("imagenet-c", tmp_path),
        opened("imagenet-c", None, at=tmp_path / "imagenet-c"),
    ):
        assert images.fingerprint == folder.fingerprint
        np.testing.assert_array_equal(images.labels, folder.labels)
        np.testing.assert_array_equal(images.group, folder.group)
        np.testing.assert_array_equal(images.source, folder.source)
        for i in range(0, len(images), 40):
            assert hash_of(images.image(i)) == hash_of(folder.image(i))


@pytest.mark.parametrize("missing", ["noise", "blur", "weather", "digital"])
def test_imagenet_c_without_one_of_its_tars_says_which(
    missing: str, shared: Path, tmp_path: Path
) -> None:
    for family in ("noise", "blur", "weather", "digital"):
        if family != missing:
            path = tmp_path / f"imagenet-c/{family}.tar"
            write_tar(path, c_files(shared, family)[:1])
    for options in ({}, {"at": tmp_path / "imagenet-c"}):
        with pytest.raises(DataError, match=rf"imagenet-c lacks {missing}\.tar: the set needs all"):
            opened("imagenet-c", tmp_path, **options)


def test_a_single_tar_of_imagenet_c_says_what_it_lacks(shared: Path, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "noise.tar", c_files(shared, "noise"))
    with pytest.raises(
        DataError, match=r"noise\.tar lacks defocus_blur/1, .*: the set needs all 75"
    ):
        opened("imagenet-c", None, at=path)


def test_the_four_extra_corruptions_come_only_if_asked_for_in_both_forms(
    shared: Path, tmp_path: Path
) -> None:
    everything = {family: c_files(shared, family) for family in FAMILIES if family != "extra"}
    everything["extra"] = extra_files()
    for family, files in everything.items():
        write_tar(tmp_path / f"tars/{family}.tar", files)
        write_folder(tmp_path / "folder", files)
    plain = opened("imagenet-c", shared / "data/imagenet-small")
    for place in ("tars", "folder"):
        without = opened("imagenet-c", None, at=tmp_path / place)
        assert without.fingerprint == plain.fingerprint
        images = opened("imagenet-c", None, at=tmp_path / place, extra=True)
        assert c_rows(images) == c_truth([one for files in everything.values() for one in files])
        assert len(set(images.group.tolist())) == 19 * 5
    assert (
        images.fingerprint
        == opened("imagenet-c", None, at=tmp_path / "tars", extra=True).fingerprint
    )
    (tmp_path / "tars/extra.tar").unlink()
    assert len(opened("imagenet-c", None, at=tmp_path / "tars")) == len(plain)
    with pytest.raises(DataError, match=r"lacks extra\.tar"):
        opened("imagenet-c", None, at=tmp_path / "tars", extra=True)


# --- what a hub copy calls the classes ---------------------------------------------------------


def words_of_classes(name: str, data: Path) -> list[str]:
    """torchvision's words for a set's classes in their order; the second of two gets a 2."""
    meta = pytest.importorskip("torchvision.models._meta")
    names: list[str] = []
    for ids in classes(data, name).values():
        word = meta._IMAGENET_CATEGORIES[ids[0]]
        names.append(word + "2" if word in names else word)
    return names


@pytest.mark.parametrize("name", ["imagenet", "imagenet-v2", "imagenet-a", "imagenet-r"])
def test_words_in_the_order_of_the_classes_are_accepted(
    name: str, shared: Path, tmp_path: Path
) -> None:
    data = shared / "data"
    found = pictures(data, name)
    label = class_label(words_of_classes(name, data))
    at = saved(hub_rows(found, label, [one.rank for one in found]), tmp_path / "saved")
    same_set(data, name, opened(name, None, at=at))


@pytest.mark.parametrize("order", ["sorted", "reversed", "shifted"])
@pytest.mark.parametrize("name", ["imagenet", "imagenet-a", "imagenet-r"])
def test_words_in_another_order_are_refused(
    name: str, order: str, shared: Path, tmp_path: Path
) -> None:
    data = shared / "data"
    found = pictures(data, name)[:3]
    names = words_of_classes(name, data)
    names = {
        "sorted": sorted(names),
        "reversed": names[::-1],
        "shifted": [*names[7:], *names[:7]],
    }[order]
    at = saved(hub_rows(found, class_label(names), [0, 1, 2]), tmp_path / "saved")
    with pytest.raises(DataError, match="class names are in another order than the set's"):
        opened(name, None, at=at)


def test_words_for_another_number_of_classes_are_refused(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    names = words_of_classes("imagenet", data)[:999]
    rows = hub_rows(pictures(data, "imagenet")[:2], class_label(names), [0, 1])
    with pytest.raises(DataError, match=r"has 999 class names such as 'tench'"):
        opened("imagenet", None, at=saved(rows, tmp_path / "saved"))


def test_a_hub_copy_of_the_whole_objectnet_is_read_as_its_folder_is(
    shared: Path, tmp_path: Path
) -> None:
    data = shared / "data"
    mappings = data / "imagenet-small/objectnet-1.0/mappings/folder_to_objectnet_label.json"
    folders = sorted(json.loads(mappings.read_text()))
    assert len(folders) == 313
    found = pictures(data, "objectnet")
    other = Picture("air_freshener", "x.png", b"", (), -1)
    numbers = [folders.index(one.folder) for one in [*found, other]]
    rows = hub_rows([*found, other], class_label(folders), numbers)
    same_set(data, "objectnet", opened("objectnet", None, at=saved(rows, tmp_path / "saved")))


@pytest.mark.parametrize("with_names", [True, False])
@pytest.mark.parametrize("name", ["imagenet", "imagenet-a"])
def test_a_split_without_labels_is_refused(
    name: str, with_names: bool, shared: Path, tmp_path: Path
) -> None:
    """ImageNet's test split on the Hub has labels of −1."""
    data = shared / "data"
    label = class_label(classes(data, name)) if with_names else integer()
    for i, labels in enumerate(([-1, -1, -1], [0, 3, -1])):
        rows = hub_rows(pictures(data, name)[:3], label, labels)
        with pytest.raises(DataError, match="labels of −1"):
            opened(name, None, at=saved(rows, tmp_path / str(i)))


def test_a_missing_label_is_refused(shared: Path, tmp_path: Path) -> None:
    rows = hub_rows(pictures(shared / "data", "imagenet")[:3], integer(), [0, None, 2])
    with pytest.raises(DataError, match="label"):
        opened("imagenet", None, at=saved(rows, tmp_path / "saved"))


@pytest.mark.parametrize(
    ("name", "label"),
    [("imagenet", 1000), ("imagenet-a", 200), ("imagenet-v2", 1000), ("objectnet", 113)],
)
def test_a_number_that_is_no_class_is_refused(
    name: str, label: int, shared: Path, tmp_path: Path
) -> None:
    """200 is no id of ImageNet-A's classes, and 113 none of ObjectNet's."""
    data = shared / "data"
    assert (label,) not in classes(data, name).values()
    found = pictures(data, name)[:2]
    at = saved(hub_rows(found, integer(), [0, label]), tmp_path / "saved")
    with pytest.raises(DataError, match=rf"the label (0|{label}) is neither below"):
        opened(name, None, at=at)
    shards(found, [tmp_path / "wds/0.tar"], lambda i, _: str(i), lambda one: label)
    with pytest.raises(DataError, match=rf"the label {label} is neither below"):
        opened(name, None, at=tmp_path / "wds")


@pytest.mark.parametrize("written", ["-1", "n01440764", "", "1.0"])
def test_a_class_in_a_webdataset_that_is_no_number_is_named(
    written: str, shared: Path, tmp_path: Path
) -> None:
    data = pictures(shared / "data", "imagenet")[0].data
    write_tar(tmp_path / "0.tar", [("a.jpg", data), ("a.cls", written.encode())])
    match = rf"0\.tar/a\.cls: expected a class number, got {re.escape(repr(written))}"
    with pytest.raises(DataError, match=match):
        opened("imagenet", None, at=tmp_path / "0.tar")


def test_an_image_in_a_webdataset_without_a_class_is_named(shared: Path, tmp_path: Path) -> None:
    data = pictures(shared / "data", "imagenet")[0].data
    write_tar(tmp_path / "0.tar", [("a.jpg", data), ("b.jpg", data), ("b.cls", b"3\n")])
    with pytest.raises(DataError, match=r"0\.tar/a\.jpg has no a\.cls beside it"):
        opened("imagenet", None, at=tmp_path / "0.tar")


def test_a_hub_copy_without_a_class_column_says_which_it_has(shared: Path, tmp_path: Path) -> None:
    rows = hub_rows(pictures(shared / "data", "imagenet")[:2], text(), ["a", "b"], "caption")
    with pytest.raises(DataError, match=r"no column wnid, label or cls\. Its columns: image, cap"):
        opened("imagenet", None, at=saved(rows, tmp_path / "saved"))


def test_there_is_no_hub_form_of_imagenet_c(shared: Path, tmp_path: Path) -> None:
    rows = hub_rows(pictures(shared / "data", "imagenet")[:2], integer(), [0, 1])
    with pytest.raises(DataError, match="no copy of imagenet-c on the Hub is known"):
        opened("imagenet-c", None, at=saved(rows, tmp_path / "saved"))


def test_what_hub_copies_need_is_installed_with_the_distributions() -> None:
    asked = [*(requires("rib-harness") or ()), *(requires("rib-plugin-imagenet-ood") or ())]
    plain = [one for one in asked if "extra ==" not in one]
    assert any(re.match(r"datasets\b", one) for one in plain)
