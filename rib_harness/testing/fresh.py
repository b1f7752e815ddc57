"""Load one plugin in a process that has loaded nothing, and see what that does to it.

Or ask a backbone of it for its identity there, as a plan does.

`python -m rib_harness.testing.fresh` reads a question from stdin and writes the answer, as JSON, to
the file that the question names: what comes out of stdout is the plugin's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rib_harness.testing.outcome import CheckSkipped

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from rib_harness.catalog import Bound

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
        printed: what it wrote.
        folder: the working directory that it changed to, else empty.
        filters: filters of warnings that it added.
        observes: whether it has observer hooks.
    """

    status: str
    reason: str
    seconds: float
    heavy: list[str]
    reached: list[str]
    environment: list[str]
    random: list[str]
    printed: str
    folder: str
    filters: list[str]
    observes: bool


def load_fresh(name: str, distribution: str) -> Fresh:
    """Load an installed plugin in a child process.

    Raises:
        CheckSkipped: it is not installed, so a child process cannot find it.
    """
    return Fresh(**_asked(name, distribution))


def needs_torch(bound: Bound) -> bool:
    """Whether asking a backbone for its identity imports torch, in a child process.

    Raises:
        CheckSkipped: its plugin is not installed, so a child process cannot find it.
    """
    plugin = bound.component.plugin
    backbone = {"id": bound.component.id, "options": dict(bound.options), "tag": bound.tag}
    return bool(_asked(plugin.name, plugin.distribution, backbone=backbone)["torch"])


def _asked(name: str, distribution: str, **more: Any) -> dict[str, Any]:
    """What a child process answers.

    Raises:
        CheckSkipped: the plugin is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer.json"
        question = {"name": name, "distribution": distribution, "file": str(file), **more}
        child = subprocess.run(
            [sys.executable, "-P", "-m", "rib_harness.testing.fresh"],
            input=json.dumps(question, default=str),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd=folder,  # what loading it here changed must not be there already
            env={
                **{name: os.environ[name] for name in _KEPT if name in os.environ},
                # What is on the path here is on the path there.
                "PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p),
            },
        )
        if not file.is_file():
            raise RuntimeError(f"the process that loads {name} failed:\n{child.stderr}")
        answer: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8"))
    if answer is None:
        raise CheckSkipped("it is not installed, so no fresh process can load it")
    return answer


def _answer(
    name: str, distribution: str, backbone: dict[str, Any] | None = None
) -> dict[str, object] | None:
    from importlib import metadata

    from rib_harness.hookspecs import ENTRY_POINT_GROUP

    points = [
        point
        for point in metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)
        if point.dist is not None and point.dist.name == distribution
    ]
    if not points:
        return None
    return _of_backbone(points[0], **backbone) if backbone else _of_plugin(points[0])


def _of_backbone(point: EntryPoint, id: str, options: dict[str, Any], tag: str) -> dict[str, Any]:
    """Ask for its identity as a plan does; what it raises, another check tells."""
    from rib_harness.catalog import Bound, load_catalog
    from rib_harness.testing.network import no_network

    catalog = load_catalog(entry_points=[point], environ={})
    before = "torch" in sys.modules  # of the plugin's own module, which another check tells
    with suppress(Exception), no_network():
        Bound(catalog.get("backbone", id), options, {}, tag).build().identity()
    return {"torch": "torch" in sys.modules and not before}


def _of_plugin(point: EntryPoint) -> dict[str, object]:
    """Load it, and say what that did."""
    import time
    import warnings

    from rib_harness.catalog import load_catalog
    from rib_harness.testing.network import no_network
    from rib_harness.testing.traces import traced

    folder = Path.cwd()
    with (
        warnings.catch_warnings(record=True),  # a warning is no print
        _written() as written,
        traced() as left,
        no_network() as reached,
    ):
        filters = list(warnings.filters)
        begun = time.perf_counter()
        (plugin,) = load_catalog(entry_points=[point], environ={}).plugins
        seconds = time.perf_counter() - begun
        added = [one for one in warnings.filters if one not in filters]
    return {
        "status": plugin.status,
        "reason": plugin.reason,
        "seconds": seconds,
        "heavy": list(plugin.heavy),
        "reached": reached,
        "environment": left.environment,
        "random": left.random,
        "printed": written[0],
        "folder": str(Path.cwd()) if Path.cwd() != folder else "",
        "filters": [f"{one[0]}:{getattr(one[2], '__name__', one[2])}" for one in added],
        "observes": _observes(sys.modules.get(point.module)),
    }


@contextmanager
def _written() -> Iterator[list[str]]:
    """What the block writes to stdout or stderr, below Python too: one text, when it has ended.

    The loader sends stdout to stderr, so the two cannot be told apart.
    """
    written: list[str] = []
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield written
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, before in zip((1, 2), saved, strict=True):
                os.dup2(before, number)
                os.close(before)
            file.seek(0)
            written.append(file.read().decode(errors="replace"))


def _observes(module: object) -> bool:
    """Whether a plugin's module has a hook that registers nothing."""
    import pluggy

    from rib_harness import hookspecs

    manager = pluggy.PluginManager("rib_harness")
    return any(
        manager.parse_hookimpl_opts(module, name) is not None
        for name in dir(hookspecs)
        if manager.parse_hookspec_opts(hookspecs, name) and name not in hookspecs.REGISTRATION
        if hasattr(module, name)
    )


if __name__ == "__main__":
    question = json.load(sys.stdin)
    file = Path(question.pop("file"))
    file.write_text(json.dumps(_answer(**question)), encoding="utf-8")
