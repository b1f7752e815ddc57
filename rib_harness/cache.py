"""Where derived files are kept: never results, always safe to delete.

What does not verify is as good as not there: it is made again.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

import xxhash
from platformdirs import user_cache_dir

from rib_harness.errors import StoreError
from rib_harness.given import user_path

log = logging.getLogger("rib_harness.cache")


def cache_dir(*parts: str) -> Path:
    """A folder below `RIB_CACHE`, or below the user's cache folder; made if needed."""
    root = os.environ.get("RIB_CACHE") or user_cache_dir("rib-harness", appauthor=False)
    path = user_path(root).joinpath(*parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The cache folder {path} cannot be made ({error.strerror}); set RIB_CACHE to another."
        ) from None
    return path


def read_checked(path: Path) -> bytes | None:
    """What `write_checked` wrote to this place.

    Returns:
        None where nothing is there, or anything else than what was written: make it again.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    content = data[len(_seal(path, b"")) :]
    return content if data.startswith(_seal(path, content)) else None


def write_checked(path: Path, content: bytes) -> None:
    """Keep a file in the cache, with a checksum; where it cannot be kept, a warning says so."""
    scratch = path.with_name(f".{path.name}-{uuid.uuid4().hex}")  # threads may write it too
    try:
        clear(path)
        # Not synced: what a power cut leaves does not verify.
        scratch.write_bytes(_seal(path, content) + content)
        scratch.replace(path)
    except OSError as error:
        log.warning("%s cannot be kept (%s): it is made again next time", path, error.strerror)
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def clear(path: Path) -> None:
    """Remove a folder that stands where a file of the cache belongs, which no rename replaces."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)


def _seal(path: Path, content: bytes) -> bytes:
    """A line of one length. It is of the name too: a file in another's place is none."""
    checksum = xxhash.xxh3_128(path.name.encode())
    checksum.update(content)
    return f"rib-harness cache 1, xxh3-128 {checksum.hexdigest()}\n".encode()
