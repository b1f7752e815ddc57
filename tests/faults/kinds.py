"""Every kind of fault: its variants, and how many are tried."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import changing
import inputs
import outside
import plugin_faults
import stored
from rib_plugin_faulty.acts import RAISES
from stored import ARTEFACTS, FIELDS, INSTEAD, OF_STEPS
from world import World

Fault = Callable[[World, str, random.Random], str]


@dataclass(frozen=True)
class Kind:
    """One kind.

    Args:
        run: does one variant, and gives the outcome.
        variants: tried in turn: seed modulo their number.
        count: how many a campaign tries.
    """

    run: Fault
    variants: Sequence[str]
    count: int


def _mixed(variants: list[str]) -> list[str]:
    """In an order in which any part is of all sorts."""
    return random.Random(0).sample(variants, len(variants))


KINDS: dict[str, Kind] = {}


def add(name: str, run: Fault, variants: Sequence[str], count: int | None = None) -> None:
    """One more; all variants are tried once unless a number is given."""
    KINDS[name] = Kind(run, variants, len(variants) if count is None else count)


add("flip", stored.flip, ARTEFACTS, 3 * len(ARTEFACTS))
LENGTHS = ("nothing", "half", "all but two bytes")
add("truncate", stored.truncate, _mixed([f"{a} to {t}" for a in ARTEFACTS for t in LENGTHS]))
add("replace", stored.replaced, _mixed([f"{a} by {i}" for a in ARTEFACTS for i in INSTEAD]), 48)
add(
    "field",
    stored.field,
    _mixed([
        f"{file} {how} {name}"
        for file, names in FIELDS.items()
        for name in names
        for how in ("lacks", "null", "text", "list", "negative")
    ]),
    36,
)  # fmt: skip
add(
    "swap",
    stored.swapped,
    [f"{file} exchanged" for file in (*OF_STEPS[:5], "step")]
    + [f"{file} copied" for file in ("done.json", "scores.parquet", "model.safetensors", "step")]
    + ["step linked", "step renamed", "scores.parquet renamed", "done.json linked"],
)
add(
    "run's record",
    stored.copied_run,
    ["twice", "exchanged", "cells of another", "a cell of another", "cells exchanged",
     "key outside"],
)  # fmt: skip
add(
    "gone",
    stored.gone,
    [*OF_STEPS, "a step", "a run", "steps", "runs", "configs", "work", "locks", "store.json",
     "the cache"],
)  # fmt: skip
add(
    "litter",
    stored.litter,
    ["store", "steps", "step", "runs", "runs of NFS", "empty step", "half a step", "work", "lock"],
)
add("vanish", changing.vanish, changing.VANISHES)
add(
    "data change",
    changing.data_change,
    [f"{what} / {packed}" for what in changing.CHANGES for packed in ("packed", "not packed")],
)
add("code change", changing.code_change, ["method", "backbone", "dataset"])
add("read", plugin_faults.read, plugin_faults.READS)
add("open", plugin_faults.opened, _mixed([*RAISES, *plugin_faults.SOME_LEAVES]), 12)
add(
    "backbone",
    plugin_faults.backbone,
    _mixed([f"{place} {act}" for place in ("identity", "build")
            for act in (*RAISES, *plugin_faults.SOME_LEAVES)]),
    16,
)  # fmt: skip
add(
    "method",
    plugin_faults.method,
    [*(f"{act} early" for act in plugin_faults.METHODS), "no-grad late", "default-dtype late",
     "labels late", "SystemExit-0 late"],
)  # fmt: skip
add("metric", plugin_faults.metric, plugin_faults.METRICS)
add(
    "hang",
    plugin_faults.hang,
    ["SIGTERM in read", "SIGINT in read", "SIGHUP in read", "SIGTERM in open", "SIGINT in build"],
)
add("kill", outside.kill, ["SIGKILL", "SIGTERM", "SIGKILL", "SIGINT", "SIGKILL", "SIGHUP"], 24)
add("stop a fit", outside.stop_fit, ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"], 8)
add("concurrent", outside.concurrent, ["same 2", "other 2", "same 3", "other 3", "killed 2"], 6)
add(
    "full disk",
    outside.full,
    ["store by mount", "cache by mount", "store by sync", "store by size"],
    16,
)
add(
    "read-only",
    outside.read_only,
    [f"{what} / {how}" for what in ("store", "cache") for how in ("read", "run", "run another")],
)
add(
    "terminal",
    outside.terminal,
    _mixed([f"{verb} on {what}" for verb in outside.SHOWN
            for what in (*outside.ENCODINGS, "a full disk", "nothing", "a closed pipe")]),
    28,
)  # fmt: skip
add("config", outside.config, list(outside.CONFIGS))
add("arguments", outside.arguments, list(outside.ARGUMENTS))
add("process", outside.processes, outside.PROCESSES)
add("dataset", inputs.dataset, list(inputs.DATASETS))
add("checkpoint", inputs.checkpoint, list(inputs.CHECKPOINTS))
add("cannot", plugin_faults.cannot, ["os-exit", "gives-another"])
