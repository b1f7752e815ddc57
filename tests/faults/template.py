"""What is undisturbed: made once a campaign, copied for each fault."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge import content, parsed
from world import DIGITS, LONG, READERS, Said, World, make_data, results_of


@dataclass
class Template:
    """Folders of undisturbed worlds, and what they say.

    Args:
        world: a whole store, its data and its caches.
        stopped: a store whose second fit was killed in its middle.
        expected: of the whole store, see `Judge`; of the stopped one under `long`; of the embedded
            suite under `digits`.
    """

    world: World
    stopped: Path
    expected: dict[str, Any]

    def clone(self, folder: Path) -> World:
        """A world of one's own; its data are the template's until `own_data`."""
        folder.mkdir(parents=True)
        for name in ("store", "cache"):
            shutil.copytree(self.world.folder / name, folder / name)
        (folder / "data").symlink_to(self.world.data)
        (folder / "stopped").symlink_to(self.stopped)
        variables = {"FAULT_WEIGHTS": str(self.world.data / "small.safetensors")}
        return World(folder, self.expected, variables)


def own_data(world: World) -> None:
    """Data that may be changed."""
    source = world.data.resolve()
    world.data.unlink()
    shutil.copytree(source, world.data)
    world.environ["FAULT_WEIGHTS"] = str(world.data / "small.safetensors")


def own_stopped(world: World) -> Path:
    """The stopped store, to be changed."""
    source = (world.folder / "stopped").resolve()
    (world.folder / "stopped").unlink()
    shutil.copytree(source, world.folder / "stopped")
    return world.folder / "stopped"


def prepare(folder: Path) -> Template:
    """Make everything.

    Raises:
        RuntimeError: an undisturbed command did not end well.
    """
    world = World(folder)
    world.folder.mkdir(parents=True)
    make_data(world.data)
    world.environ["FAULT_WEIGHTS"] = str(world.data / "small.safetensors")
    _well(world.run())
    expected: dict[str, Any] = {}
    for reader, arguments in READERS.items():
        expected[reader] = parsed(reader, _well(world.command(*arguments)).out)
    expected["files"] = {
        f"{step.name}/{file.name}": content(file)
        for step in world.steps()
        for file in step.iterdir()
        if file.suffix in (".parquet", ".safetensors")
    }
    expected["arms"] = {run["method"]: run for run in expected["results"]}

    long = folder / "long"
    _well(world.command(*LONG, store=long))
    expected["long"] = results_of(_well(world.command(*READERS["results"], store=long)).out)
    stopped = folder / "stopped"

    def kill(pid: int, seconds: float) -> None:
        with suppress(FileNotFoundError):  # folders come and go
            if list(stopped.glob("work/*/*/state-1.safetensors")):
                os.killpg(pid, signal.SIGKILL)

    while world.command(*LONG, store=stopped, meanwhile=kill).code == 0:
        shutil.rmtree(stopped)
    digits = folder / "digits"
    _well(world.command(*DIGITS, store=digits))
    expected["digits"] = results_of(_well(world.command(*READERS["results"], store=digits)).out)
    shutil.rmtree(long)
    shutil.rmtree(digits)
    return Template(world, stopped, expected)


def _well(said: Said) -> Said:
    if said.code != 0:
        raise RuntimeError(f"{' '.join(said.arguments)} ended with {said.code}:\n{said.text}")
    return said
