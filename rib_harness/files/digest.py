"""Digests of files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_digest(file: Path, algorithm: str = "sha256") -> str:
    """The digest of a file's bytes, in hex.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as empty:
    ...     file_digest(Path(empty.name), "md5")
    'd41d8cd98f00b204e9800998ecf8427e'
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, algorithm).hexdigest()
