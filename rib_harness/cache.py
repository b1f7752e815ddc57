"""Where derived files are kept: never results, always safe to delete."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_dir

from rib_harness.errors import StoreError


def cache_dir(*parts: str) -> Path:
    """A folder below `RIB_CACHE`, or below the user's cache folder; made if needed."""
    root = os.environ.get("RIB_CACHE") or user_cache_dir("rib-harness", appauthor=False)
    path = Path(root).joinpath(*parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The cache folder {path} cannot be made ({error.strerror}); set RIB_CACHE to another."
        ) from None
    return path
