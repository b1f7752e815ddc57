"""Faults of what changes while a run goes on: steps, pictures, archives."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from judge import OtherError, check_clear, check_whole, heal, tail, verdict
from template import own_data
from world import HERE, World, picture

#: What of a store may be deleted while a run goes on.
VANISHES = ("first step", "last step", "steps", "runs", "configs", "work", "locks", "store",
            "cache", "packs")  # fmt: skip


def vanish(world: World, variant: str, rng: random.Random) -> str:
    """Something is deleted while a run computes."""
    world.fresh()
    wait = rng.randint(1, 8)  # finished steps
    gone: list[Path] = []

    def meanwhile(pid: int, seconds: float) -> None:
        steps = sorted(world.store.glob("steps/*/done.json"), key=_made)
        if gone or len(steps) < wait:
            return
        place = {
            "first step": steps[0].parent,
            "last step": steps[-1].parent,
            "store": world.store,
            "cache": world.cache,
            "packs": world.cache / "packs",
        }.get(variant, world.store / variant)
        gone.append(place)
        shutil.rmtree(place, ignore_errors=True)

    said = world.run(meanwhile=meanwhile)
    if said.code == 0:
        check_whole(world)
        return verdict(True)
    check_clear(said, [str(world.folder), "needs", *(path.name for path in gone)])
    heal(world, [str(world.folder)], [])
    return verdict(False)


def _made(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return time.time()


def _other_picture(file: Path, seed: int) -> None:
    picture(np.random.default_rng(seed), 3).save(file)


def _same_size(file: Path) -> None:
    """Another picture of the same length, with the old one's times."""
    before, size = file.stat(), file.stat().st_size
    for seed in range(1, 3000):
        spare = file.with_name("spare")
        with spare.open("wb") as out:
            picture(np.random.default_rng(seed), 3).save(out, "PNG")
        if spare.stat().st_size == size:
            break
    else:  # PNG ignores what comes after its end
        data = spare.read_bytes()
        spare.write_bytes(data + bytes(max(size - len(data), 0)))
    os.utime(spare, ns=(before.st_atime_ns, before.st_mtime_ns))
    spare.replace(file)


def _all(fold: Path) -> list[Path]:
    return sorted(fold.rglob("*.png"))


def _new_tar(data: Path, seed: int) -> Path:
    """The archive with other pictures of the same names and sizes of members."""
    spare = data / "spare.tar"
    rng = np.random.default_rng(seed)
    with tarfile.open(data / "tarred.tar") as old, tarfile.open(spare, "w") as new:
        for member in old:
            file = data / "spare.png"
            picture(rng, 3).save(file)
            member.size = file.stat().st_size
            with file.open("rb") as content:
                new.addfile(member, content)
            file.unlink()
    return spare


#: What happens to the data when they are planned and not read yet.
CHANGES: dict[str, Callable[[Path], object]] = {
    "a picture": lambda data: _other_picture(_all(data / "fold")[3], 9),
    "the first picture": lambda data: _other_picture(_all(data / "fold")[0], 9),
    "a picture of the same size and time": lambda data: _same_size(_all(data / "fold")[5]),
    "all pictures": lambda data: [
        _other_picture(file, i + 50) for i, file in enumerate(_all(data / "fold"))
    ],
    "a picture is gone": lambda data: _all(data / "fold")[3].unlink(),
    "a picture is cut": lambda data: os.truncate(_all(data / "fold")[3], 60),
    "a picture is empty": lambda data: os.truncate(_all(data / "fold")[3], 0),
    "two pictures exchanged": lambda data: _exchange(data / "fold"),
    "the folder is gone": lambda data: shutil.rmtree(data / "fold"),
    "the archive": lambda data: _new_tar(data, 9).replace(data / "tarred.tar"),
    "the archive, in its place": lambda data: (data / "tarred.tar").write_bytes(
        _new_tar(data, 9).read_bytes()
    ),
    "the archive is cut": lambda data: os.truncate(data / "tarred.tar", 4000),
    "the archive is gone": lambda data: (data / "tarred.tar").unlink(),
    "the weights": lambda data: _other_weights(data / "small.safetensors"),
}


def _exchange(fold: Path) -> None:
    one, two = fold / "0" / "1.png", fold / "2" / "3.png"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def _other_weights(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def data_change(world: World, variant: str, rng: random.Random) -> str:
    """Data change between planning and decoding; then they are put back, or not."""
    what, _, packed = variant.partition(" / ")
    own_data(world)
    whole = world.folder / "whole"
    shutil.copytree(world.data, whole, copy_function=shutil.copy2)
    world.fresh()
    world.without("packs")
    if packed == "not packed":
        world.environ["RIB_PACK_LIMIT"] = "0"

    def before() -> None:
        """What `execute` is given was planned; what it reads is another thing."""
        from rib_harness import runner

        plan = runner.make_plan

        def then(*given: object) -> object:
            made = plan(*given)  # type: ignore[arg-type]
            CHANGES[what](world.data)
            return made

        runner.make_plan = then  # type: ignore[assignment]

    said = world.run(before=before)
    names = ["fold", "tarred", "small", "weights"]
    changed = said.code != 0
    if changed:
        check_clear(said, names)
    shutil.rmtree(world.data)
    shutil.copytree(whole, world.data, copy_function=shutil.copy2)
    # What the disturbed run kept, steps and packs, is of no other pictures than it says.
    try:
        heal(world, names, [])
    except OtherError as problem:
        raise OtherError(f"the disturbed run ended with {said.code}; {problem}") from None
    return verdict(not changed)


def code_change(world: World, variant: str, rng: random.Random) -> str:
    """A plugin's code changed and its version did not: said in a line, `--rerun` does it again."""
    site = world.folder / "site"
    shutil.copytree(HERE / "rib_plugin_faulty", site / "rib_plugin_faulty")
    parts = site / "rib_plugin_faulty" / "parts.py"
    text = parts.read_text()
    text = {
        "method": lambda: text.replace("model = task.fit(start)", "model = task.fit(start) ;"
                                       " model.head.weight.data.mul_(-1)"),
        "dataset": lambda: text.replace("tiny_images(24, 4, seed=5)", "tiny_images(24, 4, seed=6)"),
        "backbone": lambda: text.replace("return classifier.eval()",
                                         "classifier.head.weight.data.mul_(-1)\n"
                                         "        return classifier.eval()"),
    }[variant]()  # fmt: skip

    def before() -> None:
        parts.write_text(text)
        sys.path.insert(0, str(site))
        for name in [n for n in sys.modules if n.startswith("rib_plugin_faulty")]:
            del sys.modules[name]

    first = world.run("faulty")
    if first.code:
        raise OtherError(f"undisturbed: {tail(first.err)}")
    said = world.run("faulty", before=before)
    if variant == "dataset":  # another fingerprint: other steps, and nothing to tell
        if said.code:
            check_clear(said, ["made", "faulty"])
        return verdict(said.code == 0)
    if said.code:
        check_clear(said, ["faulty", "small"])
        return verdict(False)
    if "code" not in said.err:
        raise OtherError(f"yesterday's numbers without a word: {tail(said.err)}")
    return verdict(True)
