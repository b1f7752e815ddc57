"""A backbone's identity when planning: asked once, kept, and asked without loading torch here.

A light backbone is asked in this process. Any other is asked in a child process (or here, if
torch is loaded already), and the answer is kept in the cache until the options, the versions of
the code behind it or the files that it rests on change.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from rib_harness.cache import cache_dir, read_checked, write_checked
from rib_harness.catalog import Bound
from rib_harness.errors import PluginError, RibError
from rib_harness.options import as_paths, load_target
from rib_harness.protocols import Identity
from rib_harness.store import key_of


def identity_of(bound: Bound, *, again: bool = False) -> Identity:
    """The backbone's identity.

    Args:
        bound: the backbone.
        again: ask, whatever was kept: a file on the Hub may have another one behind its name now.

    Raises:
        RibError: what the backbone raises, e.g. for a missing weights file.
    """
    if bound.spec.light:
        identity: Identity = bound.build().identity()
        return identity
    question = {
        "target": bound.spec.target,
        "version": bound.spec.version,
        "arguments": bound.arguments(),
        "code": _versions(bound.component.plugin.distribution),
    }
    path = cache_dir("identities") / f"{key_of(question)}.json"
    kept = None if again else _kept(path)
    if kept is not None:
        return kept
    identity = bound.build().identity() if "torch" in sys.modules else _ask_child(bound)
    answer = {**_said(identity), "files": {file: _stat(file) for file in identity.files}}
    write_checked(path, json.dumps(answer).encode())
    return identity


def _ask_child(bound: Bound) -> Identity:
    question = {
        "target": bound.spec.target,
        "what": bound.component.what,
        "arguments": bound.arguments(),
        "paths": [o.parameter for o in bound.component.signature.options if o.is_given_as_path],
    }
    child = subprocess.run(
        [sys.executable, "-P", "-m", "rib_harness.identify"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer = json.loads(child.stdout.strip().rpartition("\n")[2])
    except ValueError:
        raise PluginError(
            f"{bound.component.what} failed when it was asked for its identity:\n{child.stderr}"
        ) from None
    if "error" in answer:
        raise RibError(answer["error"])
    return _identity(answer)


def _kept(path: Path) -> Identity | None:
    kept = read_checked(path)
    if kept is None:
        return None
    answer = json.loads(kept)
    if "notes" not in answer:  # kept by an earlier version
        return None
    if any(_stat(file) != stat for file, stat in answer["files"].items()):
        return None
    return _identity(answer)


def _said(identity: Identity) -> dict[str, Any]:
    told = {name: list(getattr(identity, name)) for name in ("has", "files", "notes")}
    return {**identity.to_json(), **told}


def _identity(answer: dict[str, Any]) -> Identity:
    told: dict[str, Any] = {name: tuple(answer[name]) for name in ("has", "files", "notes")}
    return replace(Identity.from_json(answer), **told)


def _stat(file: str) -> list[int]:
    try:
        stat = Path(file).stat()
    except OSError:
        return []
    # A file put in another's place may have its size and time, and a link may point elsewhere.
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _versions(distribution: str) -> dict[str, str]:
    """Versions of the distribution and of what it requires directly: they decide the answer."""
    names = [distribution]
    try:
        for line in metadata.requires(distribution) or []:
            names.append(Requirement(line).name)
    except metadata.PackageNotFoundError:
        pass
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    return versions


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    try:
        arguments = question["arguments"]
        arguments |= {k: as_paths(arguments[k]) for k in question["paths"] if k in arguments}
        backbone = load_target(question["target"], question["what"])(**arguments)
        identity: Identity = backbone.identity()
    except RibError as error:
        return {"error": str(error)}
    return _said(identity)


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(_answer(json.load(sys.stdin))) + "\n")
