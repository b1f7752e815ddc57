"""Images in a Hugging Face dataset: on the Hub, saved to disk, or as Parquet files.

Pictures are handed out as the bytes that were stored. `datasets` itself would decode them and turn
those with an EXIF rotation, which no published number on ImageNet does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from rib_harness.cache import cache_dir, read_checked, write_checked
from rib_harness.errors import DataError, nearest
from rib_harness.files.members import CHANGED
from rib_harness.locks import locked

#: What a `Location` on the Hub begins with: `hf:REPO` or `hf:REPO#SPLIT`.
PREFIX = "hf:"

#: Names by which the Hub knows a split: huggingface.co/docs/hub/datasets-file-names-and-splits.
SPLITS = frozenset({"train", "validation", "valid", "val", "dev", "test", "testing", "eval"})


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is a dataset saved to disk, or holds Parquet files."""
    marks = ("state.json", "dataset_dict.json")
    return folder.is_dir() and (
        any((folder / mark).is_file() for mark in marks) or bool(_parquet_files(folder))
    )


def _parquet_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])


class HubRows:
    """The rows of one split.

    Args:
        where: `hf:REPO`, `hf:REPO#SPLIT`, or a local folder.
        splits: which to take where none is named: the first of these that is there.

    Raises:
        DataError: not there, no network, a script, no such split, or no image column.
    """

    def __init__(self, where: str | Path, splits: Sequence[str]):
        import datasets

        self.where = str(where)
        rows = _load(self.where, splits)
        if not len(rows):
            raise DataError(f"{self.where} has no rows.")
        images = [n for n, f in rows.features.items() if isinstance(f, datasets.Image)]
        if not images:
            raise DataError(
                f"{self.where} has no column of images. Its columns: {', '.join(rows.features)}."
            )
        self.features: Any = rows.features
        self._labels = rows.remove_columns(images[0])
        self._images = rows.select_columns(images[:1]).cast_column(
            images[0], datasets.Image(decode=False)
        )
        self._column = images[0]
        # Of a struct column, to read the names without the pictures.
        flat = self._images.flatten().data.column(f"{images[0]}.path")
        self.names = [Path(path).name if path else "" for path in flat.to_pylist()]
        self._digests: list[str] = []  # once they are known

    def __len__(self) -> int:
        return len(self.names)

    def column(self, name: str) -> list[Any]:
        """All values of a column that holds no pictures."""
        return list(self._labels[name])

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
        row = self._images[int(index)][self._column]
        if row["bytes"] is not None:
            return bytes(row["bytes"])
        if not row["path"]:
            raise DataError(f"{self.where}: row {index} has no picture.")
        try:
            return Path(row["path"]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where}: {row['path']}: {error.strerror}.") from None

    def digests(self) -> list[str]:
        """SHA-256 of each picture's bytes; kept until the files behind the rows change."""
        if not self._digests:
            files = [Path(file["filename"]) for file in self._images.cache_files]
            # Which of the files' rows these are, too.
            name = _name_of([_states(files), self._images._fingerprint])
            kept = cache_dir("indices") / f"hub-{name}.json"
            # Rows that point to files elsewhere say nothing about them: those are read each time.
            inside = bool(files) and self._images[0][self._column]["bytes"] is not None
            before = read_checked(kept) if inside else None
            self._digests = json.loads(before) if before is not None else self._read_digests()
            if inside and before is None:
                write_checked(kept, json.dumps(self._digests).encode())
        return self._digests

    def _read_digests(self) -> list[str]:
        with ThreadPoolExecutor() as pool:
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


def _load(where: str, splits: Sequence[str]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    if not where.startswith(PREFIX):
        return _load_folder(Path(where), splits)
    repository, _, asked = where.removeprefix(PREFIX).partition("#")
    try:
        split = asked or _pick(datasets.get_dataset_split_names(repository), splits, where)
        return datasets.load_dataset(repository, split=split)
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


def _load_folder(folder: Path, splits: Sequence[str]) -> Any:
    import datasets

    try:
        if files := _parquet_files(folder):
            by_split: dict[str, list[Path]] = {}
            for file in files:
                by_split.setdefault(re.split(r"[-.]", file.name)[0], []).append(file)
            named = set(by_split) & SPLITS or any("-of-" in file.name for file in files)
            if named:  # else parts of one split, whatever their names
                files = by_split[_pick(sorted(by_split), splits, str(folder))]
            return _load_parquet(files)
        loaded = datasets.load_from_disk(str(folder))
    except (
        OSError,
        ValueError,
        IndexError,  # of an empty one
        datasets.exceptions.DatasetGenerationError,
    ) as error:
        raise DataError(f"{folder} cannot be read as a saved dataset: {error}") from error
    if isinstance(loaded, dict):
        return loaded[_pick(list(loaded), splits, str(folder))]
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


def _pick(there: Sequence[str], wanted: Sequence[str], where: str) -> str:
    if len(there) == 1:
        return there[0]
    for split in wanted:
        if split in there:
            return split
    raise DataError(
        f"{where} has the splits {', '.join(there)}; expected one of {', '.join(wanted)}."
        f"{nearest(wanted[0], there)} Name one: hf:REPO#SPLIT"
    )
