"""How much disk a run will need, and whether there is as much. No torch."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from safetensors import SafetensorError, safe_open

from rib_harness.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from rib_harness.plan import PlannedBackbone, Step

#: Sets up to this size are packed; larger ones are decoded at each pass.
PACK_LIMIT_GIB = 8.0

#: Bytes of a row of scores, compressed, and values of a feature: about, since no net is built.
SCORE, FEATURE = 32, 1024

#: What lies in the store; packs lie in the cache.
IN_STORE = ("checkpoints", "fits", "scores", "features")


def needed(
    steps: Iterable[Step], weights: Callable[[PlannedBackbone], int] | None = None
) -> dict[str, int]:
    """About how many bytes the steps will write, by what they are.

    Args:
        steps: those that the store does not have.
        weights: the size of a backbone's weights; None is what their file says.

    Returns:
        `checkpoints`, `fits` (the state of one under way, and the next beside it), `scores`,
        `features`; and `packs`, decoded images in the cache, of which some may be there.
    """
    size_of = weights or _size_in_file
    total = dict.fromkeys((*IN_STORE, "packs"), 0)
    packs: dict[tuple[Any, ...], int] = {}
    for step in steps:
        if step.kind == "finetune":
            size = size_of(step.backbone)
            total["checkpoints"] += size
            if step.updates and step.recipe:
                copies = 2 if step.recipe.optimizer == "sgd" else 3  # with one moment, or two
                total["fits"] = max(total["fits"], 2 * copies * size)
        elif step.kind == "evaluate":
            total["scores"] += step.images * SCORE
        else:
            total["features"] += step.images * 4 * (FEATURE + len(step.dataset.images.classes))
        read = [(step.dataset, step.preprocess), *step.reads.values(), *step.probes.values()]
        read += [(step.dataset, preprocess) for _, preprocess in step.teachers.values()]
        for dataset, preprocess in read:
            size = len(dataset.images) * 3 * preprocess.size**2
            if size <= pack_limit():
                packs[dataset.name, *preprocess.pixel_fields().values()] = size
    total["packs"] = sum(packs.values())
    return total


def check_disk(store: Path, needs: Mapping[str, int]) -> None:
    """Refuse to begin what cannot end.

    Raises:
        StoreError: the store's disk has too little room; says how much is needed, of what, and
            where.
    """
    total, free = sum(needs[name] for name in IN_STORE), shutil.disk_usage(store).free
    if total > free:
        raise StoreError(
            f"The run still needs about {decimal(total)} in the store {store} "
            f"({described(needs)}), and its disk has {decimal(free)} free. Make room, choose "
            "another --store or fewer sets or methods; packed images share that disk where the "
            "cache does (RIB_CACHE, RIB_PACK_LIMIT=0). --allow-full-disk begins all the same: "
            "what is finished is kept."
        )


def described(needs: Mapping[str, int]) -> str:
    """What of the store's part is how large: `checkpoints 2.4 GB, scores 31.0 MB`."""
    return ", ".join(f"{name} {decimal(needs[name])}" for name in IN_STORE if needs[name])


def pack_limit() -> float:
    """Bytes up to which a set is packed (`RIB_PACK_LIMIT`, in GiB).

    Raises:
        ConfigError: that is no number.
    """
    text = os.environ.get("RIB_PACK_LIMIT", "")
    try:
        return (float(text) if text else PACK_LIMIT_GIB) * 2**30
    except ValueError:
        raise ConfigError([f"RIB_PACK_LIMIT: expected a number of GiB, got {text!r}."]) from None


def _size_in_file(backbone: PlannedBackbone) -> int:
    """Of the weights in the largest file that its identity rests on; 0 where there is none."""
    files = [file for file in map(Path, backbone.identity.files) if file.is_file()]
    if not files:
        return 0
    file = max(files, key=lambda file: file.stat().st_size)
    try:  # in whatever precision they were published, checkpoints are in float32
        with safe_open(file, framework="numpy") as opened:
            shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
    except (SafetensorError, OSError):
        return file.stat().st_size
    return 4 * sum(map(math.prod, shapes))
