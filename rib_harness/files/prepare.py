"""From an archive, a folder or the network to a whole, checked set below the data root.

Everything is made in a folder beside the final place and renamed at the end: what is there is
whole, whatever happened.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from rib_harness.catalog import Bound
from rib_harness.errors import DataError
from rib_harness.files.archives import check_space, unpack
from rib_harness.files.download import fetch, wrong
from rib_harness.files.members import carry_index
from rib_harness.files.packed import is_compressed
from rib_harness.files.verify import Report, verify
from rib_harness.given import user_path
from rib_harness.guard import guarded
from rib_harness.locks import locked
from rib_harness.progress import Progress
from rib_harness.specs import Archive, DatasetSpec
from rib_harness.store import is_full


@dataclass(frozen=True)
class Wishes:
    """How a person wants it.

    Args:
        given: archives, or one folder, that are there already; none downloads.
        offline: never download.
        copy: copy what was given, where a link would do.
        extract: unpack archives, or read them in place; None does what suits the set.
        keep: keep downloaded archives that were unpacked.
        password: of an encrypted zip.
        any_checksum: take archives whose checksum is not the published one.
        allow_partial: take a set that is not whole.
    """

    given: tuple[Path, ...] = ()
    offline: bool = False
    copy: bool = False
    extract: bool | None = None
    keep: bool = False
    password: str | None = None
    any_checksum: bool = False
    allow_partial: bool = False


def prepare(bound: Bound, root: Path, wishes: Wishes, progress: Progress) -> Report:
    """Put a dataset below the data root.

    Raises:
        DataError: it could not be had whole; nothing half is left, and what was downloaded is
            kept for the next time.
    """
    dataset = bound.build()
    name = bound.spec.name
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f".{name}.lock", timeout=0):
            there = _location(bound, root)
            if there is not None:
                here = f"{name} is there already, in {there}, and"
                return _check(here, bound, root, wishes, progress)
            with _staging(root, name) as staging:
                try:
                    _stage(bound, dataset, staging, root, wishes, progress)
                    report = _check(name, bound, staging, wishes, progress)
                except DataError as error:  # in words of the place where it would have been
                    raise DataError(str(error).replace(str(staging), str(root))) from None
                _move(staging, root, Path(report.location))
                report.location = report.location.replace(str(staging), str(root), 1)
            return report
    except Timeout:
        raise DataError(f"{name} is being prepared in {root} by another process.") from None
    except OSError as error:
        if is_full(error):
            raise DataError(f"The disk of {root} is full; nothing half is left there.") from None
        raise DataError(f"{name} cannot be prepared in {root}: {error}.") from error


def archives_of(bound: Bound) -> tuple[Archive, ...]:
    """The files in which the dataset is published, with its options."""
    dataset = bound.build()
    if hasattr(dataset, "archives"):
        with guarded(bound.component.what):
            archives: tuple[Archive, ...] = tuple(dataset.archives())
        return archives
    spec: DatasetSpec = bound.spec
    return spec.archives


def home_of(bound: Bound, dataset: Any) -> Path:
    """Where the set's folder lies below a data root."""
    return Path(getattr(dataset, "home", "") or bound.spec.name)


def _location(bound: Bound, root: Path) -> str | None:
    """Where the set lies; None if it is not there."""
    try:
        return bound.location(root) or bound.images(root).location or str(root)
    except DataError:
        return None


def _check(name: str, bound: Bound, root: Path, wishes: Wishes, progress: Progress) -> Report:
    images = bound.images(root)
    bar = progress.bar("check", min(len(images), 500))
    try:
        report = verify(images, advance=bar.advance)
    finally:
        bar.close()
    if not report.whole and not wishes.allow_partial:
        lines = "\n".join(f"  - {problem}" for problem in report.problems)
        raise DataError(
            f"{name} is not whole:\n{lines}\nMove it away, or take it as it is: --allow-partial"
        )
    return report


@contextmanager
def _staging(root: Path, name: str) -> Iterator[Path]:
    """A folder on the same disk; gone at the end, and so is what an earlier try left."""
    staging = root / f".{name}.preparing"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _stage(
    bound: Bound, dataset: Any, staging: Path, root: Path, wishes: Wishes, progress: Progress
) -> None:
    """Lay the set out below `staging` as it will lie below the root."""
    home = staging / home_of(bound, dataset)
    given = [user_path(path).absolute() for path in wishes.given]
    for path in given:
        if not path.exists():
            raise DataError(f"--from: there is no file or folder {path}.")
    folders = [path for path in given if path.is_dir()]
    if folders:
        if len(given) > 1:
            raise DataError("--from: expected one folder, or archives, not both.")
        _place(folders[0], home, wishes.copy)
        return
    published = archives_of(bound)
    if not published:
        raise DataError(
            f"{bound.spec.name} is not published as a file: give a folder with --from"
            + (", or make it (rib-harness data make)." if hasattr(dataset, "make") else ".")
            + (f" {bound.spec.homepage}" if bound.spec.homepage else "")
        )
    if given:
        pairs = _matched(given, published, wishes)
    else:
        pairs = [(a, _downloaded(a, root, wishes, progress)) for a in published]
    for archive, file in pairs:
        extract = archive.unpack if wishes.extract is None else wishes.extract
        # Only what is packed as one stream must be unpacked; the name does not tell.
        if archive.images and (extract or is_compressed(file)):
            _unpack(archive, file, home, wishes, progress)
            if not given and not wishes.keep:
                file.unlink()
        else:
            _place(file, staging / bound.spec.name / archive.name, wishes.copy, move=not given)


def _matched(
    given: list[Path], published: Sequence[Archive], wishes: Wishes
) -> list[tuple[Archive, Path]]:
    """Which published archive each file is, by its name; and whether it is that one."""
    pairs = []
    beside = [given[0].parent / archive.name for archive in published]
    for path in [*given, *(p for p in beside if p.is_file() and p not in given)]:
        archive = next((a for a in published if a.name == path.name), None)
        if archive is None and len(published) == 1 and path in given:
            archive = published[0]
        known = ", ".join(a.name for a in published)
        problem = f"expected one called {known}" if archive is None else wrong(archive, path)
        archive = archive or Archive(name=path.name)
        if problem and not wishes.any_checksum:
            raise DataError(
                f"{path} is not the published {archive.name}: {problem}. "
                "To take it all the same: --any-checksum"
            )
        pairs.append((archive, path))
    return pairs


def _downloaded(archive: Archive, root: Path, wishes: Wishes, progress: Progress) -> Path:
    folder = root / ".downloads"
    if wishes.offline and not (folder / archive.name).is_file():
        where = f" Fetch {archive.urls[0]} elsewhere." if archive.urls else f" {archive.get}"
        raise DataError(
            f"{archive.name} is not here, and --offline forbids to download it.{where} "
            "Then: rib-harness data prepare NAME --from FILE"
        )
    return fetch(archive, folder, progress)


def _unpack(archive: Archive, file: Path, home: Path, wishes: Wishes, progress: Progress) -> None:
    """Below `home`, without the folder of the same name that some archives begin with."""
    scratch = home.parent / f".unpacked-{home.name}"
    bar = progress.bar(f"unpack {archive.name}", file.stat().st_size, unit="bytes")
    try:
        unpack(file, scratch, password=wishes.password, advance=bar.advance)
    finally:
        bar.close()
    inner = scratch
    while [entry.name for entry in inner.iterdir()] == [home.name]:
        inner = inner / home.name
    inner.rename(home)
    shutil.rmtree(scratch, ignore_errors=True)


def _place(source: Path, target: Path, copy: bool, *, move: bool = False) -> None:
    """Link to what a person has, copy it, or move what was downloaded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if move:
        source.rename(target)
    elif not copy:
        target.symlink_to(source, target_is_directory=source.is_dir())
    elif source.is_dir():
        size = sum(f.stat().st_size for f in source.rglob("*") if f.is_file())
        check_space(target.parent, size, str(source))
        shutil.copytree(source, target)
    else:
        check_space(target.parent, source.stat().st_size, str(source))
        shutil.copyfile(source, target)


def _move(staging: Path, root: Path, location: Path) -> None:
    """Rename what was staged to its place; folders that are there already take it in."""
    for path in sorted(staging.iterdir()):
        _rename(path, root / path.name)
    with suppress(ValueError):
        if not location.is_symlink():
            carry_index(location, root / location.relative_to(staging))


def _rename(source: Path, target: Path) -> None:
    if target.is_symlink() and not target.exists():
        raise DataError(f"{target} is a broken link, to {target.readlink()}; remove it.")
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if not target.exists():
        os.rename(source, target)  # noqa: PTH104  # a link itself, not where it leads
    elif source.is_dir() and not source.is_symlink() and target.is_dir():
        for path in sorted(source.iterdir()):
            _rename(path, target / path.name)
    else:
        raise DataError(f"{target} is in the way; move it.")
