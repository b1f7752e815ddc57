"""Images in a Hugging Face dataset: on the Hub, saved to disk, or as Parquet files.

Pictures are handed out as the bytes that were stored. `datasets` itself would decode them and turn
those with an EXIF rotation, which no published number on ImageNet does.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash
from PIL import Image, UnidentifiedImageError

from rib_harness.cache import cache_dir, read_checked, write_checked
from rib_harness.errors import DataError, nearest
from rib_harness.files.choose import LABELS, PICTURES, choose, told
from rib_harness.files.members import CHANGED
from rib_harness.locks import locked
from rib_harness.pictures import is_picture
from rib_harness.readers import Readers

#: What a `Location` on the Hub begins with: `hf:REPO` or `hf:REPO#SPLIT`.
PREFIX = "hf:"

#: Names by which the Hub knows a split: huggingface.co/docs/hub/datasets-file-names-and-splits.
SPLITS = frozenset({"train", "validation", "valid", "val", "dev", "test", "testing", "eval"})

#: Names of one split: where two are there, which is meant is not said.
_ONE_SPLIT = ({"validation", "valid", "val", "dev"}, {"test", "testing", "eval"})

#: A column of classes has one of these words in its name.
_LABEL = r"(^|[^a-z])(wnid|labels?|cls|class|targets?|y|synset)($|[^a-z])"


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is a dataset saved to disk, or holds Parquet files."""
    marks = ("state.json", "dataset_dict.json")
    return folder.is_dir() and (
        any((folder / mark).is_file() for mark in marks) or bool(_parquet_files(folder))
    )


def _parquet_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])


class NoPicturesError(DataError):
    """A table without a column of pictures."""


class HubRows:
    """The rows of one split.

    Args:
        where: `hf:REPO`, `hf:REPO#SPLIT`, or a local folder.
        splits: which to take where none is named: the first of these that is there.
        image: the column of pictures; None takes the one whose name says so.

    Attributes:
        notes: what was chosen among several.

    Raises:
        DataError: not there, no network, a script, no such split, no image column or several.
    """

    def __init__(self, where: str | Path, splits: Sequence[str], image: str | None = None):
        import datasets

        self.where = str(where)
        self.notes: list[str] = []
        rows = _load(self.where, splits, self.notes)
        if not len(rows):
            raise DataError(f"{self.where} has no rows.")
        self.features: Any = rows.features
        self._rows = rows
        self._pictures = [name for name in self.features if _may_hold_pictures(rows, name)]
        paths = getattr(self.features.get(image), "dtype", "") in ("string", "large_string")
        named = [*self._pictures, *([image] if image and paths else [])]
        if not named:
            raise NoPicturesError(
                f"{self.where} has no column of images. Its columns: {', '.join(self.features)}."
            )
        self._column = column = choose(PICTURES, named, image, self.where)
        self.notes += told(PICTURES, column, self._pictures)
        self._images = rows.select_columns([column])
        if isinstance(self.features[column], datasets.Image):
            self._images = self._images.cast_column(column, datasets.Image(decode=False))
        # To read the names without the pictures.
        flat = self._images.flatten().data
        field = column if paths else f"{column}.path"
        if field in flat.column_names:
            self.names = [
                Path(path).name if path else "" for path in flat.column(field).to_pylist()
            ]
        else:
            self.names = [""] * len(rows)
        bytes_ = next((n for n in (f"{column}.bytes", column) if n in flat.column_names), None)
        #: Whether every picture lies in the rows: of files elsewhere they say nothing.
        self._inside = not paths and bytes_ is not None and not flat.column(bytes_).null_count
        self._digests: list[str] = []  # once they are known

    def __len__(self) -> int:
        return len(self.names)

    def label_column(self, asked: str | None = None) -> str:
        """The column of classes: the one that is asked for, or whose name says so.

        Raises:
            DataError: none, or several of equally likely names.
        """
        others = [name for name in self.features if name not in self._pictures]
        likely = [name for name in others if re.search(_LABEL, name.casefold())]
        if not (others if asked else likely):
            raise DataError(
                f"{self.where} has no column wnid, label or cls. Its columns: "
                f"{', '.join(self.features)}. Name one: label=COLUMN"
            )
        chosen = choose(LABELS, others if asked else likely, asked, self.where)
        self.notes += told(LABELS, chosen, likely)
        return chosen

    def column(self, name: str) -> list[Any]:
        """All values of a column that holds no pictures."""
        return list(self._rows.select_columns([name])[name])

    def read(self, index: int) -> bytes:
        """A picture's bytes, as they were stored.

        Raises:
            DataError: none there, or others than those of the digests.
        """
        data = self._bytes(index)
        if self._digests and hashlib.sha256(data).hexdigest() != self._digests[int(index)]:
            raise DataError(f"{self.where}: row {index}: other bytes. {CHANGED}")
        return data

    def _bytes(self, index: int) -> bytes:
        data, path = _stored(self._images[int(index)][self._column])
        if data is not None:
            return data
        if not path:
            raise DataError(f"{self.where}: row {index} has no picture.")
        try:
            return self._file(path).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where}: {path}: {error.strerror}.") from None

    def _file(self, path: str) -> Path:
        """Where a row's file lies: its path is relative to the dataset, not to this process.

        Raises:
            DataError: two files may be meant.
        """
        if self.where.startswith(PREFIX):
            return Path(path)
        places = dict.fromkeys(Path(self.where, folder, path) for folder in ("", "data"))
        there = [place for place in places if place.is_file()]
        if len(there) > 1:
            raise DataError(
                f"{self.where}: {path} may be {' or '.join(map(str, there))}; move one away."
            )
        return there[0] if there else next(iter(places))

    def digests(self) -> list[str]:
        """SHA-256 of each picture's bytes; kept until the files behind the rows change."""
        if not self._digests:
            files = [Path(file["filename"]) for file in self._images.cache_files]
            # Which of the files' rows these are, too.
            name = _name_of([_states(files), self._images._fingerprint])
            kept = cache_dir("indices") / f"hub-{name}.json"
            inside = bool(files) and self._inside  # files elsewhere are read each time
            before = read_checked(kept) if inside else None
            self._digests = json.loads(before) if before is not None else self._read_digests()
            if inside and before is None:
                write_checked(kept, json.dumps(self._digests).encode())
        return self._digests

    def _read_digests(self) -> list[str]:
        with Readers() as pool:
            return list(
                pool.map(lambda i: hashlib.sha256(self.read(i)).hexdigest(), range(len(self)))
            )


def _states(files: Sequence[Path]) -> list[list[Any]]:
    """Changes when one of them does; the change time, since `touch` can turn the other back."""
    stats = [file.stat() for file in files]
    return [
        [str(file), stat.st_size, stat.st_ctime_ns, stat.st_ino]
        for file, stat in zip(files, stats, strict=True)
    ]


def _name_of(state: Any) -> str:
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]


def _stored(value: Any) -> tuple[bytes | None, str | None]:
    """Bytes and path of a picture as a row has it: a struct of both, bytes, or a path."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    return (None, value) if isinstance(value, str) else (value, None)


def _may_hold_pictures(rows: Any, name: str) -> bool:
    """Whether a column says that it holds pictures, is called so, or begins with one.

    Parquet that `datasets` did not write says of no column that it is one of images.
    """
    import datasets

    feature = rows.features[name]
    if isinstance(feature, datasets.Image):
        return True
    struct = isinstance(feature, dict) and not set(feature).isdisjoint(("bytes", "path"))
    if not struct and "binary" not in str(getattr(feature, "dtype", "")):
        return False
    if PICTURES.is_usual(name):
        return True
    first = rows.select_columns([name])[:10][name]
    return any(
        _is_picture(data) if data is not None else is_picture(path or "")
        for data, path in map(_stored, first)
    )


def _is_picture(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # it knows the format, and more
        return True


def _load(where: str, splits: Sequence[str], notes: list[str]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    if not where.startswith(PREFIX):
        return _load_folder(Path(where), splits, notes)
    repository, _, asked = where.removeprefix(PREFIX).partition("#")
    try:
        if not asked:
            there = datasets.get_dataset_split_names(repository)
            asked = pick_split(there, splits, where, notes)
        return datasets.load_dataset(repository, split=asked)
    except DataError:
        raise
    except Exception as error:  # of any of the libraries below it
        hint = ""
        if "script" in str(error):
            hint = " It is made by a script, which `datasets` no longer runs: fetch its archive"
            hint += " (rib-harness data info NAME) and use that."
        elif "gated" in str(error).lower() or "401" in str(error):
            hint = " Accept its terms on its page, and log in: hf auth login"
        elif isinstance(error, datasets.exceptions.DatasetNotFoundError):
            hint = " See its page on the Hub."
        elif isinstance(error, OSError) or "offline" in str(error).lower():
            hint = " Without a network only what is in the local cache can be used."
        first = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{where} cannot be loaded: {type(error).__name__}: {first}.{hint}"
        ) from error


def _load_folder(folder: Path, splits: Sequence[str], notes: list[str]) -> Any:
    import datasets

    try:
        if files := _parquet_files(folder):
            by_split: dict[str, list[Path]] = {}
            for file in files:
                by_split.setdefault(_split_of(file), []).append(file)
            named = set(by_split) & SPLITS or any("-of-" in file.name for file in files)
            if named:  # else parts of one split, whatever their names
                files = by_split[pick_split(sorted(by_split), splits, str(folder), notes)]
            return _load_parquet(files)
        loaded = datasets.load_from_disk(str(folder))
    except (
        OSError,
        ValueError,
        IndexError,  # of an empty one
        NotImplementedError,  # of a type of Arrow
        datasets.exceptions.DatasetGenerationError,
    ) as error:
        raise DataError(f"{folder} cannot be read as a saved dataset: {error}") from error
    if isinstance(loaded, dict):
        return loaded[pick_split(list(loaded), splits, str(folder), notes)]
    return loaded


def _load_parquet(files: Sequence[Path]) -> Any:
    """Rows of Parquet files, which `datasets` reads from a copy: one that verifies."""
    import datasets

    name = _name_of(_states(files))
    copy, kept = cache_dir("hub-datasets") / name, cache_dir("indices") / f"copy-{name}.json"

    def load() -> Any:
        return datasets.load_dataset(
            "parquet",
            data_files=[str(file) for file in files],
            split="train",
            cache_dir=str(copy),
            keep_in_memory=False,
        )

    with locked(copy.with_suffix(".lock")):
        checksums = read_checked(kept)
        if checksums is not None:
            with contextlib.suppress(Exception):  # of any of the libraries below it: made again
                rows = load()
                if _checksums(rows) == checksums:
                    return rows
        shutil.rmtree(copy, ignore_errors=True)
        rows = load()
        write_checked(kept, _checksums(rows))
        return rows


def _checksums(rows: Any) -> bytes:
    """Of all files of a copy."""
    files = [Path(file["filename"]) for file in rows.cache_files]
    found = {}
    for file in [*files, files[0].with_name("dataset_info.json")]:
        with file.open("rb") as opened:
            found[file.name] = hashlib.file_digest(opened, xxhash.xxh3_128).hexdigest()
    return json.dumps(found).encode()


def _split_of(file: Path) -> str:
    """The split that a Parquet file's name says, else how it begins: `imagenet_val_0.parquet`."""
    words = SPLITS.intersection(re.split(r"[-_.]", file.name.lower()))
    return "-".join(sorted(words)) or re.split(r"[-.]", file.name)[0]


def pick_split(there: Sequence[str], wanted: Sequence[str], where: str, notes: list[str]) -> str:
    """The split that is meant.

    Args:
        there: those that are there.
        wanted: usual names of the one that is meant; the first that is there is taken.
        where: for messages.
        notes: told what was chosen among several of these.

    Raises:
        DataError: none of them, or two names of one split.
    """
    if len(there) == 1:
        return there[0]
    usual = [split for split in wanted if split in there]
    alike = [s for s in there if any({s, *usual[:1]} <= names for names in _ONE_SPLIT)]
    if usual and len(alike) < 2:
        notes += [f"split {usual[0]!r}, not {', '.join(usual[1:])}"] if usual[1:] else []
        return usual[0]
    hub = where.startswith(PREFIX)
    raise DataError(
        f"{where} has the splits {', '.join(there)}; expected one of {', '.join(wanted)}."
        f"{nearest(wanted[0], there)} "
        + ("Name one: hf:REPO#SPLIT" if hub else "Give a folder that holds one of them only.")
    )
