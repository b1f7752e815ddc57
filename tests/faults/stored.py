"""Faults of what lies on the disk: a bit, a length, a field, another thing in a file's place."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge import (
    OtherError,
    SkippedError,
    check_clear,
    check_read,
    check_whole,
    follow,
    heal,
    tail,
    verdict,
)
from template import own_stopped
from world import DIGITS, LONG, READERS, World, results_of

#: Files of a finished step.
OF_STEPS = (
    "done.json", "step.json", "scores.parquet", "features.safetensors", "model.safetensors",
    "history.jsonl",
)  # fmt: skip
OF_STORES = ("runs", "store.json", "configs")
OF_CACHES = ("packs", "indices", "identities")
ARTEFACTS = (*OF_STEPS, *OF_STORES, *OF_CACHES, "state", "digits")

READING = tuple(READERS)


@dataclass(frozen=True)
class Damaged:
    """A file to damage.

    Args:
        file: where it lies.
        names: what a message about it may call it.
        allowed: what may be deleted because of it.
    """

    file: Path
    names: tuple[str, ...]
    allowed: tuple[Path, ...]


def choose(world: World, artefact: str, rng: random.Random) -> Damaged:
    """One of the files of this kind."""
    if artefact in OF_STEPS:
        step = rng.choice([s for s in world.steps(artefact) if (s / artefact).stat().st_size])
        said = json.loads((step / "done.json").read_text())
        return Damaged(step / artefact, (step.name, said["id"]), (step,))
    if artefact == "store.json":
        file = world.store / "store.json"
        return Damaged(file, (str(world.store),), (file,))
    if artefact in OF_STORES:
        file = rng.choice(sorted((world.store / artefact).iterdir()))
    elif artefact == "state":
        stopped = own_stopped(world)
        file = rng.choice(sorted(stopped.glob("work/*/*/st*-*.safetensors")))
        return Damaged(file, (str(file), "faulty"), (file, file.parent, file.parent.parent))
    else:
        file = rng.choice([f for f in sorted((world.cache / artefact).iterdir()) if f.is_file()])
    return Damaged(file, (str(file), file.name), (file,))


def check(world: World, artefact: str, rng: random.Random, damaged: Damaged) -> str:
    """What the program makes of it."""
    if artefact == "state":
        return _goes_on(world, LONG, world.folder / "stopped", "long", damaged)
    if artefact == "digits":
        world.environ["RIB_PACK_LIMIT"] = "0"
        return _goes_on(world, DIGITS, world.folder / "new", "digits", damaged)
    if artefact in OF_CACHES:
        world.fresh()
        return verdict(heal(world, damaged.names, damaged.allowed))
    if artefact in (*OF_STEPS, "runs", "configs"):
        said = world.command("doctor")
        check_clear(said, damaged.names, damaged.allowed)
    whole = check_read(world, rng.choice(READING), damaged.names, damaged.allowed)
    return verdict(heal(world, damaged.names, damaged.allowed) and whole)


def _goes_on(world: World, command: Any, store: Path, expected: str, damaged: Damaged) -> str:
    for trial in range(3):
        said = world.command(*command, store=store)
        if said.code == 0:
            found = results_of(world.command(*READERS["results"], store=store).out)
            if found != world.expected[expected]:
                raise OtherError("other numbers than undisturbed, with exit code 0")
            return verdict(trial == 0)
        check_clear(said, damaged.names, damaged.allowed)
        if not follow(said) and trial:
            break
    raise OtherError(f"the same command never ends well: {tail(said.err)}")


def flip(world: World, variant: str, rng: random.Random) -> str:
    """One bit."""
    damaged = choose(world, variant, rng)
    flip_bit(damaged.file, rng)
    return check(world, variant, rng, damaged)


def flip_bit(file: Path, rng: random.Random) -> None:
    """One bit of a file, any."""
    data = bytearray(file.read_bytes())
    if not data:
        raise SkippedError(f"{file.name} is empty")
    position = rng.randrange(8 * len(data))
    data[position // 8] ^= 1 << position % 8
    file.write_bytes(data)


def truncate(world: World, variant: str, rng: random.Random) -> str:
    """To nothing, half, or all but two bytes."""
    artefact, _, how = variant.partition(" to ")
    damaged = choose(world, artefact, rng)
    data = damaged.file.read_bytes()
    damaged.file.write_bytes(data[: {"nothing": 0, "half": len(data) // 2}.get(how, -2)])
    return check(world, artefact, rng, damaged)


def _remove(file: Path) -> None:
    file.unlink()


#: What may lie in a file's place.
INSTEAD: dict[str, Callable[[Path], Any]] = {
    "a folder": lambda file: (_remove(file), file.mkdir()),
    "a dangling link": lambda file: (_remove(file), file.symlink_to("nowhere")),
    "a link to itself": lambda file: (_remove(file), file.symlink_to(file.name)),
    "{}": lambda file: file.write_text("{}"),
    "[]": lambda file: file.write_text("[]"),
    "null": lambda file: file.write_text("null"),
    "a number": lambda file: file.write_text("1e999"),
    "a page": lambda file: file.write_text("<!DOCTYPE html><html>Sign in</html>"),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "no text": lambda file: file.write_bytes(b"\xff\xfe\x00\x80"),
    "deep": lambda file: file.write_text("[" * 100_000),
    "a long number": lambda file: file.write_text('{"format": ' + "9" * 5000 + "}"),
}


def replaced(world: World, variant: str, rng: random.Random) -> str:
    """Something else in its place."""
    artefact, _, what = variant.partition(" by ")
    damaged = choose(world, artefact, rng)
    INSTEAD[what](damaged.file)
    return check(world, artefact, rng, damaged)


def field(world: World, variant: str, rng: random.Random) -> str:
    """A field of a JSON file is missing, or of another type."""
    artefact, how, name = variant.split(" ")
    damaged = choose(world, artefact, rng)
    head, brace, rest = damaged.file.read_text().partition("{")  # a file of the cache has a head
    said = json.loads(brace + rest)
    if name not in said:
        name = rng.choice(sorted(said))
    if how == "lacks":
        del said[name]
    else:
        said[name] = {"null": None, "text": "x", "list": ["x"], "negative": -1}[how]
    damaged.file.write_text(head + json.dumps(said))
    return check(world, artefact, rng, damaged)


FIELDS = {
    "done.json": ("id", "kind", "key", "provenance", "summary", "facts"),
    "step.json": ("kind", "dataset"),
    "runs": (
        "format", "id", "created", "cells", "members", "references", "sources", "finetune",
        "method", "recipe", "shares", "suite_members", "notes", "features", "seed", "components",
    ),
    "store.json": ("format",),
    "identities": ("weights", "preprocess", "classes", "files", "has"),
}  # fmt: skip


def swapped(world: World, variant: str, rng: random.Random) -> str:
    """Files, or whole steps, of two steps change places."""
    file, _, how = variant.partition(" ")
    one, two = rng.sample(world.steps("done.json" if file == "step" else file), 2)
    names = tuple(n for step in (one, two) for n in (step.name, _id(step)))
    if file == "step":
        a, b = one, two
    else:
        a, b = one / file, two / file
    if how == "exchanged":
        spare = world.store / "spare"
        a.rename(spare)
        b.rename(a)
        spare.rename(b)
    elif how == "copied":
        _remove_all(b)
        (shutil.copytree if a.is_dir() else shutil.copyfile)(a, b)
    elif how == "linked":
        _remove_all(b)
        b.symlink_to(a)
    elif how == "renamed":
        names += ("are missing",)  # what is not there has no name
        a.rename(a.with_name(random_key(rng) if file == "step" else f"{file}.bak"))
    return check(world, file, rng, Damaged(b, names, (one, two)))


def _id(step: Path) -> str:
    return str(json.loads((step / "done.json").read_text())["id"])


def _remove_all(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def random_key(rng: random.Random) -> str:
    """A key that is none."""
    return f"{rng.getrandbits(128):032x}"


def copied_run(world: World, variant: str, rng: random.Random) -> str:
    """A run's record under another name, or with another's cells."""
    one, two = sorted((world.store / "runs").iterdir())
    if variant == "twice":
        shutil.copyfile(one, one.with_name("0123456789abcdef.json"))
        check_whole(world)  # beside the record that it is a copy of, it says nothing of its own
        return verdict(True)
    elif variant == "exchanged":
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
    else:
        mine, other = json.loads(one.read_text()), json.loads(two.read_text())
        if variant == "cells of another":
            mine["cells"] = other["cells"]
        elif variant == "a cell of another":
            row = next(iter(mine["cells"]["post"]))
            mine["cells"]["post"][row] = other["cells"]["post"][row]
        elif variant == "cells exchanged":
            row = mine["cells"]["post"][next(iter(mine["cells"]["post"]))]
            a, b = list(row)[:2]
            row[a], row[b] = row[b], row[a]
        elif variant == "key outside":
            mine["cells"]["pre"][next(iter(mine["cells"]["pre"]))] = "../../outside"
        one.write_text(json.dumps(mine))
    extra = one.with_name("0123456789abcdef.json")
    names = (one.name, two.name, extra.name, one.stem, two.stem)
    return check(world, "runs", rng, Damaged(one, names, (one, two, extra)))


def gone(world: World, variant: str, rng: random.Random) -> str:
    """A folder, or a file, that was deleted."""
    names: tuple[str, ...] = (str(world.store), "There is no store", "No results")
    place = world.store / variant
    if variant in OF_STEPS:
        place = choose(world, variant, rng).file
        names = (place.parent.name, str(place))
    elif variant == "a step":
        place = rng.choice(world.steps())
    elif variant == "a run":
        place = rng.choice(sorted((world.store / "runs").iterdir()))
        _remove_all(place)
        return verdict(heal(world, names, ()))  # nothing says that it was there
    elif variant == "the cache":
        place = world.cache
    if not place.exists():
        raise SkippedError(f"there is no {variant}")
    _remove_all(place)
    return check(world, "gone", rng, Damaged(place, names, (place,)))


def litter(world: World, variant: str, rng: random.Random) -> str:
    """Files that other programs leave in a store."""
    step = rng.choice(world.steps())
    place = {
        "store": world.store / ".DS_Store",
        "steps": world.store / "steps" / ".DS_Store",
        "step": step / ".nfs0001",
        "runs": world.store / "runs" / "._x.json",
        "runs of NFS": world.store / "runs" / ".nfs0000",
        "empty step": world.store / "steps" / random_key(rng) / "x",
        "half a step": world.store / "steps" / random_key(rng) / "scores.parquet",
        "work": world.store / "work" / f"{step.name}-0123456789ab" / "done.json",
        "lock": world.store / "locks" / "x" / "y",
    }[variant]
    place.parent.mkdir(exist_ok=True, parents=True)
    place.write_bytes(os.urandom(64))
    names = (str(place), place.name, step.name)
    return check(world, "litter", rng, Damaged(place, names, (place, step)))
