"""One bit of a stored file, many times: what is read is the undisturbed, or it is told.

In one process, by what the verbs read with.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stored import ARTEFACTS, OF_STEPS, OF_STORES, choose
from template import Template
from world import World


class ToldError(Exception):
    """The reader says that this is no result; or a cached file is made again."""


def _store(world: World) -> Any:
    from rib_harness.store import Store

    return Store(world.store)


def _done(world: World, file: Path) -> Any:
    return _there(_store(world).done(file.parent.name))


def _there(value: Any) -> Any:
    if value is None:
        raise ToldError
    return value


def _inputs(world: World, file: Path) -> Any:
    return _there(_store(world).inputs(file.parent.name))


def _scores(world: World, file: Path) -> Any:
    from rib_harness.scores import Scores

    store = _store(world)
    _there(store.done(file.parent.name))
    return Scores.read(store.file(file.parent.name, file.name)).table.to_pydict()


def _features(world: World, file: Path) -> Any:
    from rib_harness.features import Features

    store = _store(world)
    _there(store.done(file.parent.name))
    read = Features.read(store.file(file.parent.name, file.name))
    return [read.features.tobytes(), read.logits.tobytes(), read.labels.tolist(), read.ids,
            read.index.tolist(), dict(read.moved)]  # fmt: skip


def _weights(world: World, file: Path) -> Any:
    from safetensors.torch import load_file

    store = _store(world)
    _there(store.done(file.parent.name))
    read = load_file(store.file(file.parent.name, file.name))
    return {name: tensor.numpy().tobytes() for name, tensor in read.items()}


def _history(world: World, file: Path) -> Any:
    store = _store(world)
    _there(store.done(file.parent.name))
    return store.history(file.parent.name)


def _runs(world: World, file: Path) -> Any:
    store = _store(world)
    found = store.runs()
    if store.damaged:
        raise ToldError
    return found


def _opened(world: World, file: Path) -> Any:
    return [record["id"] for record in _store(world).runs()]


def _config(world: World, file: Path) -> Any:
    store = _store(world)
    return [store.config(record) for record in store.runs()]


def _pixels(world: World) -> Any:
    from rib_plugin_faulty.parts import Made

    from rib_harness.engine.data import Pixels
    from rib_harness.testing.tiny import TINY

    return Pixels(Made().open(None), TINY, origin={"flips": 1}, workers=1, pack=True)


def _packed(world: World, file: Path) -> Any:
    pixels = _pixels(world)
    order = [np.arange(a, a + 6) for a in range(0, len(pixels), 6)]
    return [batch.tobytes() for batch in pixels.batches(order)]


def _members(world: World, file: Path) -> Any:
    from rib_harness.files.members import Members

    members = Members([world.data / "tarred.tar"])
    every = range(len(members))
    return [members.names, [members.read(i) for i in every], members.digests(every)]


def _identity(world: World, file: Path) -> Any:
    from rib_harness.catalog import load_catalog
    from rib_harness.identify import identity_of

    if "bound" not in _kept:
        _kept["bound"] = load_catalog().bind("backbone", "faulty/small")
    return repr(identity_of(_kept["bound"]))


_kept: dict[str, Any] = {}


def _state(world: World, file: Path) -> Any:
    from rib_harness.engine.fit import unpack_tree

    return _plain(unpack_tree(file))


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value) for value in node]
    return node.numpy().tobytes() if hasattr(node, "numpy") else repr(node)


def _digits(world: World, file: Path) -> Any:
    from rib_plugin_digits import data

    def make() -> Any:
        raise ToldError

    data.make = make
    return {name: array.tobytes() for name, array in data._load().items()}


READ: dict[str, Callable[[World, Path], Any]] = {
    "done.json": _done,
    "step.json": _inputs,
    "scores.parquet": _scores,
    "features.safetensors": _features,
    "model.safetensors": _weights,
    "history.jsonl": _history,
    "runs": _runs,
    "store.json": _opened,
    "configs": _config,
    "packs": _packed,
    "indices": _members,
    "identities": _identity,
    "state": _state,
    "digits": _digits,
}


def flip_all(template: Template, flips: int, only: str | None, root: Path, jobs: int) -> int:
    """Print a table; returns the exit code."""
    artefacts = [only] if only else list(ARTEFACTS)
    begun = time.monotonic()
    worlds = [(template.clone(root / f"flips-{name}"), name, flips) for name in artefacts]
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        counts = dict(zip(artefacts, pool.imap(_flips, worlds), strict=True))
    words = ("the same", "told", "silent", "traceback")
    width = max(map(len, artefacts))
    lines = [f"{flips} flips of one bit".ljust(width) + "".join(f"{w:>12}" for w in words)]
    for name, (count, _) in counts.items():
        cells = "".join(f"{count[word]:>12}" for word in words)
        lines.append(f"{name:<{len(lines[0]) - 12 * len(words)}}{cells}")
    lines += [f"  {text}" for _, shown in counts.values() for text in shown]
    sys.stdout.write("\n".join(lines) + f"\n{time.monotonic() - begun:.0f} s\n")
    return int(any(count["silent"] + count["traceback"] for count, _ in counts.values()))


def _flips(task: tuple[World, str, int]) -> tuple[Counter[str], list[str]]:
    """Outcomes of the flips of one artefact, and the first ones that are neither."""
    world, artefact, flips = task
    os.environ.update(RIB_CACHE=str(world.cache), **world.environ)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - it stays
    rng, counts, shown = random.Random(f"flips {artefact}"), Counter[str](), []
    if artefact == "packs":
        shutil.rmtree(world.cache / "packs")
        _pixels(world)
    read, chosen = READ[artefact], [choose(world, artefact, rng).file]
    if artefact in (*OF_STEPS, *OF_STORES, "state"):  # of one kind, several files
        for _ in range(9):
            again = chosen[0] if artefact == "state" else choose(world, artefact, rng).file
            chosen.append(again)
    files = {file: (file.read_bytes(), read(world, file)) for file in chosen}
    for number in range(flips):
        file = chosen[number % len(chosen)]
        data, right = files[file]
        position = rng.randrange(8 * len(data))
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        file.write_bytes(changed)
        word = _outcome(read, world, file, right)
        counts[word] += 1
        if word in ("silent", "traceback") and len(shown) < 3:
            shown.append(f"{word}: {artefact}: bit {position} of {file.name}: {_kept.get('why')}")
        file.write_bytes(data)
    return counts, shown


def _outcome(read: Callable[[World, Path], Any], world: World, file: Path, right: Any) -> str:
    from rib_harness.errors import RibError

    try:
        found = read(world, file)
    except (RibError, ToldError):
        return "told"
    except Exception as error:
        _kept["why"] = repr(error)
        return "traceback"
    if found == right:
        return "the same"
    _kept["why"] = json.dumps(repr(found))[:200]
    return "silent"
