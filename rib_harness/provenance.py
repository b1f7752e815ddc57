"""Where a number comes from: versions, commit, hardware, cost."""

from __future__ import annotations

import os
import platform
import sys
from functools import lru_cache
from importlib import metadata
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
