"""Where a number comes from: versions, commit, hardware, cost."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rib_harness.specs import KINDS, Spec

if TYPE_CHECKING:
    from rib_harness.catalog import Catalog

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


def code_of(spec: Spec) -> str:
    """The digest of the package that a component is in; empty for what is not made of code."""
    package = spec.target.partition(":")[0].partition(".")[0]
    return code_digest(package) if package else ""


def changed_code(made: Iterable[Mapping[str, Any] | None], catalog: Catalog) -> list[str]:
    """What to know of finished steps that were made by other code than is installed now.

    Args:
        made: what finished steps say of themselves.
        catalog: what is installed.

    Returns:
        A line a distribution: which of its components, how many steps, what to do.
    """
    now = {(kind, c.id): c for kind in KINDS for c in catalog.list(kind)}
    steps: dict[str, int] = {}
    names: dict[str, set[str]] = {}
    versions: dict[str, set[str]] = {}
    for done in made:
        found = set()
        for said in (done or {}).get("provenance", {}).get("components", ()):
            component = now.get((said["kind"], said["id"]))
            if component is None or said.get("code", "") in ("", code_of(component.spec)):
                continue
            distribution = component.plugin.distribution
            found.add(distribution)
            names.setdefault(distribution, set()).add(component.spec.name)
            versions.setdefault(distribution, set()).add(said["version"])
        for distribution in found:
            steps[distribution] = steps.get(distribution, 0) + 1
    lines = []
    for distribution, count in steps.items():
        plugin = next(p for p in catalog.plugins if p.distribution == distribution)
        then = ", ".join(sorted(versions[distribution]))
        same = then == plugin.version
        listed = ", ".join(sorted(names[distribution]))
        lines.append(
            f"{'WARNING' if same else 'note'}: {count} finished steps here were made by other code "
            f"of {distribution} than is installed now ("
            + (f"both say version {then}, {plugin.origin}" if same else f"version {then}, now ")
            + ("" if same else plugin.version)
            + f"): {listed}. Their numbers are those of the earlier code; `--rerun NAME` does them "
            "again, and a component whose numbers change needs a higher version."
        )
    return lines


def cost(seconds: float, device: Any) -> dict[str, Any]:
    """Seconds of the step, threads, and the largest memory of the process so far, in bytes."""
    import torch

    used: dict[str, Any] = {"seconds": round(seconds, 3), "device": str(device)}
    used["threads"] = torch.get_num_threads()
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
