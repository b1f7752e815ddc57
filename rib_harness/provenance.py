"""Where a number comes from: versions, commit, hardware, cost."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import sys
from contextlib import suppress
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("rib-harness", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow")


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Versions and the machine."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "packages": versions,
    }


@cache
def code_digest(package: str) -> str:
    """A hash of a package's sources as they were when this was first asked: before it is imported.

    Of what was made with a plugin under development it says whether its code is still the same.
    """
    digest = hashlib.sha256()
    found = None
    with suppress(ImportError, ValueError):  # of a notebook, or made by a program
        found = importlib.util.find_spec(package)
    places = [Path(place) for place in found.submodule_search_locations or []] if found else []
    files = [(place, file) for place in places for file in sorted(place.rglob("*.py"))]
    if not places and found and found.origin:
        files = [(Path(found.origin).parent, Path(found.origin))]
    for place, file in files:
        with suppress(OSError):  # an editor's lock, a folder of that name
            data = file.read_bytes()
            digest.update(f"{file.relative_to(place)} {len(data)} ".encode() + data)
    return digest.hexdigest()


def cost(seconds: float, device: Any) -> dict[str, Any]:
    """Seconds of the step, and the largest memory of the process so far, in bytes."""
    import torch

    used: dict[str, Any] = {"seconds": round(seconds, 3), "device": str(device)}
    try:
        import resource
    except ImportError:  # not on Windows
        pass
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        used["max_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if getattr(device, "type", "") == "cuda":
        used["device_name"] = torch.cuda.get_device_name(device)
        used["max_device_memory"] = torch.cuda.max_memory_allocated(device)
    return used
