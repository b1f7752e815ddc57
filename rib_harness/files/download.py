"""Fetch a published file: mirrors in order, resumed, checked, and never half there.

What has come is kept as `NAME.part`; the file has its own name only when its checksum is right.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from rib_harness import __version__
from rib_harness.errors import DataError
from rib_harness.files.archives import check_space
from rib_harness.files.digest import file_digest
from rib_harness.locks import locked
from rib_harness.progress import Bar, Progress
from rib_harness.specs import Archive
from rib_harness.store import is_full, write_atomically

_CHUNK = 1 << 18

#: Connections that bring nothing, one after the other, before the next mirror is tried.
FRUITLESS = 4


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds.

    Args:
        answer: for bytes to come.
        pause: before the second try; doubled each time.
    """

    answer: float = 30.0
    pause: float = 1.0


def fetch(
    archive: Archive, folder: Path, progress: Progress, patience: Patience | None = None
) -> Path:
    """The archive's file in `folder`, downloaded if it is not there yet.

    Raises:
        DataError: no mirror gave the whole file; says what each did, and what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / archive.name
    with locked(folder / f".{archive.name}.lock"):
        if target.is_file():
            problem = wrong(archive, target)
            if not problem:
                return target
            progress.say(f"{target} is there, but {problem}: it is fetched again.")
            target.unlink()
        failures = []
        for url in archive.urls:
            download = _Download(archive, url, folder, progress, patience or Patience())
            try:
                download.finish()
                return target
            except _MirrorError as error:
                failures.append(f"  - {url}: {error}")
                progress.say(f"{url}: {error}")
    if not failures:
        raise DataError(
            f"{archive.name} cannot be downloaded by a program. {archive.get}".strip()
            + " Then: rib-harness data prepare NAME --from FILE"
        )
    raise DataError(
        f"{archive.name} could not be downloaded:\n"
        + "\n".join(failures)
        + "\nWhat has come so far is kept; the same command goes on. Or fetch the file yourself "
        "and give it with --from FILE."
    )


def wrong(archive: Archive, file: Path) -> str:
    """How a file differs from the published one; empty where it does not."""
    size = file.stat().st_size
    if archive.size is not None and size != archive.size:
        return f"it has {size:,} bytes, expected {archive.size:,}"
    for algorithm in ("sha256", "md5"):
        expected = getattr(archive, algorithm)
        if expected:
            came = file_digest(file, algorithm)
            if came != expected:
                return f"its {algorithm} is {came}, expected {expected}"
    return ""


def go_offline() -> None:
    """No network from here on, for the libraries that load weights and datasets too."""
    # They read these when they are imported, in child processes too …
    for name in ("RIB_OFFLINE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"
    # … and have read them if that was before.
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            setattr(sys.modules[module], "HF_HUB_OFFLINE", True)  # noqa: B010


def is_offline() -> bool:
    """Whether `go_offline` was called here or in a parent process, or the user says so."""
    return os.environ.get("RIB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


class _MirrorError(Exception):
    """This mirror does not serve; the next may."""


class _Download:
    """One file from one address."""

    def __init__(
        self, archive: Archive, url: str, folder: Path, progress: Progress, patience: Patience
    ):
        self.archive, self.url, self.patience, self.progress = archive, url, patience, progress
        self.target = folder / archive.name
        self.part = folder / f"{archive.name}.part"
        self.said = folder / f"{archive.name}.part.json"  # by which to know the same file again
        self.bar: Bar | None = None

    def finish(self) -> None:
        """The whole, checked file, renamed to its own name.

        Raises:
            _MirrorError: this address does not give it.
        """
        resumed = self.have() > 0
        try:
            if self.have() != self.archive.size:
                self.get_all()
        finally:
            if self.bar is not None:
                self.bar.close()
                self.bar = None
        problem = wrong(self.archive, self.part)
        if problem:
            self.forget()
            if resumed:  # the beginning may have been another file's: once more, from the start
                return self.finish()
            raise _MirrorError(problem)
        self.part.replace(self.target)
        self.said.unlink(missing_ok=True)
        return None

    def have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.said.unlink(missing_ok=True)

    def get_all(self) -> None:
        best, fruitless, pause = self.have(), 0, self.patience.pause
        while True:
            try:
                if self.get_more():
                    return
                reason = "the connection was closed early"
            except urllib.error.HTTPError as error:
                reason = f"the server answered {error.code} {error.reason}"
                error.close()
                if error.code == 416:  # nothing beyond what is there
                    if self.archive.size in (None, self.have()):
                        return
                    self.forget()
                elif error.code < 500 and error.code not in (408, 429):
                    raise _MirrorError(reason) from None
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and is_full(error):
                    raise DataError(
                        f"The disk of {self.part.parent} is full. {self.have():,} bytes of "
                        f"{self.archive.name} are kept; make room, and the same command goes on."
                    ) from None
                reason = str(getattr(error, "reason", "") or error) or type(error).__name__
            # Further than ever before: a server that always begins again gets nowhere.
            if self.have() > best:
                best, fruitless, pause = self.have(), 0, self.patience.pause
                continue
            fruitless += 1
            if fruitless >= FRUITLESS:
                raise _MirrorError(f"{reason}, {FRUITLESS} times")
            time.sleep(pause)
            pause *= 2

    def get_more(self) -> bool:
        """One connection. Returns whether the file is whole now."""
        have = self.have()
        request = urllib.request.Request(
            self.url, headers={"User-Agent": f"rib-harness/{__version__}"}
        )
        if have:
            request.add_header("Range", f"bytes={have}-")
            kept = self.kept()
            if kept:
                request.add_header("If-Range", kept)
        with urllib.request.urlopen(request, timeout=self.patience.answer) as answer:
            if answer.headers.get_content_type() == "text/html":
                raise _MirrorError("it answers with a web page instead of the file")
            start = _start_of(answer.headers.get("Content-Range")) if answer.status == 206 else 0
            if start not in (0, have):
                raise _MirrorError(f"it sent bytes from {start} when asked for those from {have}")
            length = answer.headers.get("Content-Length")
            if length and not (length.isascii() and length.isdigit()):
                raise _MirrorError(f"it sent no valid Content-Length: {length!r}")
            total = start + int(length) if length else self.archive.size
            if self.archive.size is not None and total not in (None, self.archive.size):
                raise _MirrorError(f"its file has {total:,} bytes, expected {self.archive.size:,}")
            if total is not None:
                check_space(self.part.parent, max(total - have, 0), self.archive.name)
            self.show(start, total)
            write_atomically(self.said, json.dumps({"url": self.url, "tag": _tag(answer)}))
            # What has come is on its way to the disk at once, for the next try to go on from.
            with self.part.open("r+b" if start else "wb") as file:
                file.seek(start)
                while chunk := answer.read1(_CHUNK):
                    file.write(chunk)
                    file.flush()
                    if self.bar is not None:
                        self.bar.advance(len(chunk))
        # Without a length, the end of the connection is the end of the file.
        return total is None or self.have() >= total

    def show(self, start: int, total: int | None) -> None:
        if self.bar is not None:
            self.bar.close()
        label = f"fetch {self.archive.name}"
        self.bar = self.progress.bar(label, total or 0, done=start, unit="bytes")

    def kept(self) -> str:
        """What the server called the file that the kept part is of, if it was this address."""
        try:
            said = json.loads(self.said.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ""
        same = isinstance(said, dict) and said.get("url") == self.url
        return str(said.get("tag") or "") if same else ""


def _tag(answer: http.client.HTTPResponse) -> str:
    """A strong ETag, or the date: what `If-Range` may carry."""
    etag = answer.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return etag
    return answer.headers.get("Last-Modified", "") or ""


def _start_of(content_range: str | None) -> int:
    """The first byte of `bytes 5-9/10`."""
    try:
        return int((content_range or "").removeprefix("bytes").strip().partition("-")[0])
    except ValueError:
        raise _MirrorError(f"it sent no valid Content-Range: {content_range!r}") from None
