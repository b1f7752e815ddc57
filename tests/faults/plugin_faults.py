"""Faults of plugins: what they raise, print, give and leave behind."""

from __future__ import annotations

import json
import os
import random
import signal

from judge import CANNOT, OtherError, check_clear, check_whole, heal, tail, verdict
from rib_plugin_faulty.acts import LEAVES, NOISE, RAISES
from rib_plugin_faulty.parts import CHANGES, GIVES, VALUES
from world import READERS, Said, World, results_of

#: What is left behind in a metric, a dataset or a backbone is tried with these.
SOME_LEAVES = ("print", "write-1", "no-stdout", "default-dtype", "no-grad", "numpy-errors",
               "chdir", "environment", "warnings", "torch-seed", "thread", "signals")  # fmt: skip

READS = (*RAISES, *GIVES, *SOME_LEAVES)
METRICS = (*RAISES, *VALUES, *SOME_LEAVES, "label", "confidence", "correct")
METHODS = (*RAISES, *LEAVES, *CHANGES)


def _quiet(said: Said) -> None:
    """What a plugin prints is no result."""
    if NOISE in said.out:
        raise OtherError("what a plugin prints is on stdout")


def _end(world: World, said: Said, names: list[str], act: str) -> str:
    """A run that a dataset or backbone disturbed, then the same without."""
    _quiet(said)
    if said.code == 0:
        if act in RAISES or act in GIVES:
            check_whole(world)
            raise OtherError("it ended with 0 though a plugin failed")
        check_whole(world)
        return verdict(True)
    if act == "KeyboardInterrupt" and said.code != 130:
        raise OtherError(f"Ctrl-C ended with {said.code}: {tail(said.err)}")
    check_clear(said, names)
    heal(world, names, [])
    return verdict(False)


def read(world: World, variant: str, rng: random.Random) -> str:
    """A dataset's `read`, from some picture on."""
    world.fresh()
    world.without("packs")
    name = rng.choice(["made", "fold", "tarred"])
    said = world.run(environ={"FAULT_READ": f"{name}:{rng.choice([0, 3, 20])}:{variant}"})
    return _end(world, said, [name, "tiny["], variant)


def opened(world: World, variant: str, rng: random.Random) -> str:
    """A dataset's `open`."""
    world.fresh()
    name = rng.choice(["made", "fold", "tarred"])
    said = world.run(environ={"FAULT_OPEN": f"{name}::{variant}"})
    return _end(world, said, [name], variant)


def backbone(world: World, variant: str, rng: random.Random) -> str:
    """A backbone's `identity` or `build`."""
    world.fresh()
    world.without("identities")
    place, _, act = variant.partition(" ")
    said = world.run(environ={"FAULT_BACKBONE": f"{place}::{act}"})
    return _end(world, said, ["small"], act)


def method(world: World, variant: str, rng: random.Random) -> str:
    """A method that does something besides; the next one's numbers are the undisturbed."""
    world.fresh()
    act, _, when = variant.partition(" ")
    bad = f"faulty:act={act},late={'true' if when == 'late' else 'false'}"
    said = world.run(bad, "ft", "wise-ft")
    _quiet(said)
    clear = said.code != 0
    if clear:
        if act == "KeyboardInterrupt" and said.code != 130:
            raise OtherError(f"Ctrl-C ended with {said.code}: {tail(said.err)}")
        check_clear(said, ["faulty", str(world.folder)])
    elif act in RAISES:
        raise OtherError("it ended with 0 though a plugin failed")
    if said.code == 130:  # the run of the bad one stays incomplete, as it should
        world.run("ft", "wise-ft")
    shown = world.command(*READERS["results"])
    if shown.code and not clear:
        raise OtherError(f"the run ended with 0, its results with {shown.code}: {tail(shown.err)}")
    runs = {run["method"]: run for run in results_of(shown.out)}
    for arm, run in world.expected["arms"].items():
        if runs.get(arm) != run:
            raise OtherError(f"{arm} has other numbers beside it (exit code {said.code})")
    return verdict(not clear)


def metric(world: World, variant: str, rng: random.Random) -> str:
    """A metric that does something besides, before another."""
    command = ("results", "--metric", "faulty", "--metric", "ece", "--format", "json")
    undisturbed = world.command(*command)
    said = world.command(*command, environ={"FAULT_METRIC": f"metric::{variant}"})
    _quiet(said)
    failed = variant in RAISES or variant in VALUES
    if said.code != 0:
        check_clear(said, ["faulty"])
    elif failed:
        raise OtherError(f"it ended with 0 though the metric failed: {said.out[:80]!r}")
    if said.code in (0, 1) and said.out:
        found, right = (
            [row for row in json.loads(one.out) if row["metric"] == "metrics/ece"]
            for one in (said, undisturbed)
        )
        if found != right:
            raise OtherError("the next metric has other values beside it")
        if said.code == 0 and json.loads(said.out) != json.loads(undisturbed.out):
            raise OtherError("it changed what it was given, and gave another value")
    return verdict(said.code == 0)


def hang(world: World, variant: str, rng: random.Random) -> str:
    """A `read` that hangs: a signal ends the run within seconds."""
    world.fresh()
    world.without("packs")
    name, _, place = variant.partition(" in ")
    number = getattr(signal, name)
    sent: list[float] = []

    def meanwhile(pid: int, seconds: float) -> None:
        if seconds > 6 and not sent:
            os.killpg(pid, number)
            sent.append(seconds)

    variables = {
        "read": {"FAULT_READ": "made:3:hang"},
        "open": {"FAULT_OPEN": "made::hang"},
        "build": {"FAULT_BACKBONE": "build::hang"},
    }[place]
    said = world.run(environ=variables, meanwhile=meanwhile, limit=30)
    if said.code not in (130, -number):
        raise OtherError(f"{name} while it hangs: exit code {said.code}: {tail(said.err)}")
    if said.code == 130:
        check_clear(said, [])
    heal(world, [], [])
    return verdict(said.code == 130)


def cannot(world: World, variant: str, rng: random.Random) -> str:
    """What no process can prevent, and what can be said nevertheless."""
    world.fresh()
    world.without("packs")
    world.run(environ={"FAULT_READ": f"made:3:{variant}"})
    if variant == "os-exit":
        heal(world, ["made"], [])  # nothing is lost by it
    return CANNOT
