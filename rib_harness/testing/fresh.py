"""Load one plugin in a process that has loaded nothing, and see what that does to it.

`python -m rib_harness.testing.fresh` reads a question from stdin and writes the answer as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

from rib_harness.testing.outcome import CheckSkipped

#: Variables that a process needs. The others stay here: the plugin may have been loaded in this
#: process, and what it set must not be there already.
_KEPT = ("PATH", "HOME", "USERPROFILE", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP", "LANG", "LC_ALL",
         "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONWARNINGS")  # fmt: skip


@dataclass(frozen=True)
class Fresh:
    """What loading one plugin did.

    Args:
        status, reason: as of `Plugin`.
        seconds: it took.
        heavy: heavy packages that it imported.
        reached: hosts that it reached for.
        environment: variables that it set, changed or removed.
        random: generators whose state it changed.
        bare: functions that have a hook's name, but no `@hookimpl`.
        observes: whether it has observer hooks.
    """

    status: str
    reason: str
    seconds: float
    heavy: list[str]
    reached: list[str]
    environment: list[str]
    random: list[str]
    bare: list[str]
    observes: bool


def load_fresh(name: str, distribution: str) -> Fresh:
    """Load an installed plugin in a child process.

    Raises:
        CheckSkipped: it is not installed, so a child process cannot find it.
    """
    child = subprocess.run(
        [sys.executable, "-m", "rib_harness.testing.fresh"],
        input=json.dumps({"name": name, "distribution": distribution}),
        capture_output=True,
        text=True,
        check=False,
        env={
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
            # What is on the path here is on the path there.
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
    )
    try:
        answer = json.loads(child.stdout.strip().rpartition("\n")[2])
    except ValueError:
        raise RuntimeError(f"the process that loads {name} failed:\n{child.stderr}") from None
    if answer is None:
        raise CheckSkipped("it is not installed, so no fresh process can load it")
    return Fresh(**answer)


def _answer(name: str, distribution: str) -> dict[str, object] | None:
    import random
    import time
    from importlib import metadata

    import numpy as np

    from rib_harness.catalog import load_catalog
    from rib_harness.hookspecs import ENTRY_POINT_GROUP
    from rib_harness.testing.network import no_network

    points = [
        point
        for point in metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)
        if point.dist is not None and point.dist.name == distribution
    ]
    if not points:
        return None
    environment, python, numpy = dict(os.environ), random.getstate(), str(np.random.get_state())
    with no_network() as reached:
        begun = time.perf_counter()
        (plugin,) = load_catalog(entry_points=points[:1], environ={}).plugins
        seconds = time.perf_counter() - begun
    drawn = {"random": python != random.getstate(), "numpy": numpy != str(np.random.get_state())}
    changed = environment.items() ^ dict(os.environ).items()
    return {
        "status": plugin.status,
        "reason": plugin.reason,
        "seconds": seconds,
        "heavy": list(plugin.heavy),
        "reached": reached,
        "environment": sorted({variable for variable, _ in changed}),
        "random": [generator for generator, moved in drawn.items() if moved],
        **_hooks_of(sys.modules.get(points[0].module)),
    }


def _hooks_of(module: object) -> dict[str, object]:
    """What of a plugin's module is named like a hook."""
    import pluggy

    from rib_harness import hookspecs

    manager = pluggy.PluginManager("rib_harness")
    hooks = [name for name in dir(hookspecs) if manager.parse_hookspec_opts(hookspecs, name)]
    named = [name for name in hooks if callable(getattr(module, name, None))]
    marked = {name for name in named if manager.parse_hookimpl_opts(module, name)}
    return {
        "bare": [name for name in named if name not in marked],
        "observes": bool(marked - set(hookspecs.REGISTRATION)),
    }


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(_answer(**json.load(sys.stdin))) + "\n")
