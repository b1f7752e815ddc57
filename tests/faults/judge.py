"""Whole, a clear error, or something else: what a command's end is, and what a store is worth."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from world import READERS, Said, World, results_of

WHOLE, CLEAR, OTHER = "whole", "clear error", "other"

#: What no process can prevent; and what this machine does not allow to be tried.
CANNOT, SKIPPED = "cannot be prevented", "not tried"

#: Words that say what to do.
ADVICE = re.compile(
    r"again|add|delete|choose|expected|use|set|give|raise|free|mend|see|check|remove|did you mean|"
    r"name|install|replace|copy|put|save|write|leave|anew|shows|not valid|line \d|--\w+",
    re.IGNORECASE,
)

#: Paths whose deletion is advised, and those that it says are done away with.
DELETES = re.compile(r"\b(?:[Dd]elete|[Rr]emove|rm -r?f?) [`'\"]?(/[^\s`'\",;]+)")


class OtherError(Exception):
    """The outcome is neither whole nor a clear error."""


class SkippedError(Exception):
    """It cannot be tried here."""


def tail(text: str, lines: int = 6) -> str:
    """Its last lines, for a report."""
    return "\n".join(text.strip().splitlines()[-lines:])


def check_clear(said: Said, names: Sequence[str], allowed: Sequence[Path] = ()) -> None:
    """Raise unless it ended in a clear error.

    Args:
        said: what the command left.
        names: one of these is in the message: paths, steps, options.
        allowed: what its advice may delete, and all below; the files that are damaged.
    """
    shown = f"`{' '.join(said.arguments[:3])} …` exit code {said.code}: {tail(said.err)}"
    if said.code is None:
        raise OtherError(f"hangs: {shown}")
    if "Traceback (most recent call last)" in said.text:
        raise OtherError(f"a traceback: {shown}")
    if said.code == 130:
        return
    if said.code not in (1, 2):
        raise OtherError(f"an undocumented exit code: {shown}")
    begins = [found.start() for found in re.finditer("^Error: ", said.err, re.MULTILINE)]
    if len(begins) != 1:
        raise OtherError(f"{len(begins)} messages: {shown}")
    heard = said.text if said.arguments[0] == "doctor" else said.err  # its result are the names
    if not any(name in heard for name in (*names, "INCOMPLETE")):
        raise OtherError(f"names none of {', '.join(names)}: {shown}")
    if not ADVICE.search(heard):
        raise OtherError(f"does not say what to do: {shown}")
    if len(said.err) - begins[0] > 4000:
        raise OtherError(f"a message of {len(said.err) - begins[0]} characters: {shown}")
    for path in advised(said.err):
        if not any(path == one or one in path.parents for one in allowed):
            raise OtherError(f"its advice destroys more than is damaged, {path}: {shown}")


def advised(message: str) -> list[Path]:
    """What a message says to delete."""
    found = [Path(text.rstrip(".")) for text in DELETES.findall(message)]
    if named := re.search(r"(/\S+) is damaged", message):
        if "Delete its folder" in message:
            found.append(Path(named[1]).parent)
        if "Delete this one file" in message:
            found.append(Path(named[1]))
    return found


def follow(said: Said) -> bool:
    """Do what it says to delete."""
    found = advised(said.err)
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return bool(found)


def check_read(world: World, reader: str, names: Sequence[str], allowed: Sequence[Path]) -> bool:
    """Ask the store; True if it gave the undisturbed numbers, False for a clear error."""
    said = world.command(*READERS[reader])
    if said.code == 0:
        same(reader, said, world.expected)
        return True
    check_clear(said, names, allowed)
    return False


def same(reader: str, said: Said, expected: dict[str, Any]) -> None:
    """Raise unless a reader gave what it gives of the undisturbed store."""
    if "Traceback (most recent call last)" in said.text:
        raise OtherError(f"a traceback: {tail(said.err)}")
    try:
        found = parsed(reader, said.out)
    except (ValueError, KeyError) as error:
        raise OtherError(f"`{reader}` cannot be read ({error!r}): {said.out[:200]!r}") from None
    if found != expected[reader]:
        raise OtherError(f"`{reader}` gives other numbers, with exit code 0")


def parsed(reader: str, text: str) -> Any:
    """What a reader said, comparable."""
    if reader == "results":
        return results_of(text)
    if reader == "metrics":
        return sorted(text.splitlines())
    return json.loads(text)


def check_whole(world: World) -> None:
    """Raise unless the store has every number and every prediction of the undisturbed one."""
    for reader in READERS:
        said = world.command(*READERS[reader])
        if said.code != 0:
            raise OtherError(
                f"after `run` ended with 0, `{reader}` ends with {said.code}: {tail(said.err)}"
            )
        same(reader, said, world.expected)
    check_tables(world)


def check_tables(world: World) -> None:
    """Raise unless each checkpoint and each table of scores is the same."""
    for key, digest in world.expected["files"].items():
        name, _, file = key.partition("/")
        path = world.store / "steps" / name / file
        if not path.exists():
            raise OtherError(f"{key} is missing after `run` ended with 0")
        if content(path) != digest:
            if file == "model.safetensors" and str(path) in world.command("doctor").text:
                continue  # large, and hashed when it is loaded: nothing here needs it
            raise OtherError(f"{key} is another than undisturbed")


def content(path: Path) -> Any:
    """What is compared of a step's file: of scores the rows, of weights the bytes."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pydict()
    return path.read_bytes()


def heal(world: World, names: Sequence[str], allowed: Sequence[Path]) -> bool:
    """Give the command again until it ends well, doing what it says; True if at once."""
    for trial in range(3):
        said = world.run()
        if said.code == 0:
            if "Traceback (most recent call last)" in said.text:
                raise OtherError(f"a traceback with exit code 0: {tail(said.err)}")
            check_whole(world)
            return trial == 0
        check_clear(said, names, allowed)
        if "left untouched" in said.err:  # of another version, it says; a person looks
            allowed[0].unlink()
        elif not follow(said) and trial:
            break
    raise OtherError(f"the same command never ends well: {tail(said.err)}")


def verdict(whole: bool) -> str:
    """The word for it."""
    return WHOLE if whole else CLEAR
