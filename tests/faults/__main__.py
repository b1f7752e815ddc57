"""A seeded campaign of faults: whole, a clear error, or something else?

    python tests/faults                            all kinds, a table; exit code 1 if any is other
    python tests/faults --count 40                 a part, spread over all kinds
    python tests/faults --only "flip" --seed 7     one fault again
    python tests/faults --flips 3000               bits of every kind of artefact, in one process
    python tests/faults --flips 3000 --artefact scores.parquet

*whole*: every number, interval and prediction is the undisturbed run's to the bit. *clear error*:
one message, no traceback, a documented exit code; it names the path or the step and says what to
do, that destroys no more than was damaged, and doing it ends in the undisturbed numbers. *other*:
anything else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

# Before torch: nets are tiny, children are forked, and a CPU is exact to the bit.
os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")

import world as worlds
from judge import CANNOT, CLEAR, OTHER, SKIPPED, WHOLE, OtherError, SkippedError
from kinds import KINDS
from stored import ARTEFACTS
from template import Template, prepare

WORDS = (WHOLE, CLEAR, OTHER, CANNOT, SKIPPED)

template: Template
root: Path


def one(task: tuple[str, int]) -> tuple[str, int, str, str, str, float]:
    """A fault: kind, seed, variant, outcome, why, seconds."""
    name, seed = task
    kind = KINDS[name]
    variant = kind.variants[seed % len(kind.variants)]
    folder = root / f"{name.replace(' ', '-')}-{seed}"
    begun, why = time.monotonic(), ""
    try:
        world = template.clone(folder)
        outcome = kind.run(world, variant, random.Random(f"{name} {seed}"))
    except OtherError as problem:
        outcome, why = OTHER, str(problem)
    except SkippedError as problem:
        outcome, why = SKIPPED, str(problem)
    except Exception:
        outcome, why = OTHER, "the campaign itself: " + traceback.format_exc()
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return name, seed, variant, outcome, why, time.monotonic() - begun


def tasks_of(only: list[str], seed: int | None, count: int | None) -> list[tuple[str, int]]:
    """Which faults: each kind's own number, or so many in all, or one."""
    if seed is not None:
        return [(name, seed) for name in only]
    every = [(name, s) for name in only for s in range(KINDS[name].count)]
    random.Random(0).shuffle(every)  # so that a part is of all kinds, and slow ones are spread
    if count is None or count >= len(every):
        return every
    first = [(name, 0) for name in only]
    rest = [task for task in every if task not in first]
    return (first + rest)[:count]


def table(done: list[tuple[str, int, str, str, str, float]]) -> str:
    """Outcomes by kind."""
    counts = {name: Counter(row[3] for row in done if row[0] == name) for name in KINDS}
    words = [word for word in WORDS if word in WORDS[:3] or any(c[word] for c in counts.values())]
    width = max(map(len, KINDS))
    lines = [f"{'kind':<{width}}" + "".join(f"{word:>{len(word) + 3}}" for word in words)]
    total: Counter[str] = Counter()
    for name, count in counts.items():
        if count:
            cells = "".join(f"{count[word]:>{len(word) + 3}}" for word in words)
            lines.append(f"{name:<{width}}{cells}")
            total += count
    lines.append(f"{'all ' + str(len(done)):<{width}}"
                 + "".join(f"{total[word]:>{len(word) + 3}}" for word in words))  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    """The exit code."""
    global template, root, keep
    parser = argparse.ArgumentParser(
        prog="python tests/faults", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", metavar="KIND", choices=list(KINDS), action="append",
                        help="repeatable: " + ", ".join(KINDS))  # fmt: skip
    parser.add_argument("--seed", type=int, help="with --only: this fault alone")
    parser.add_argument("--count", type=int, help="so many faults, of all kinds")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--flips", type=int, help="so many bits of each kind of artefact")
    parser.add_argument("--artefact", choices=ARTEFACTS, help="with --flips: this kind alone")
    parser.add_argument("--keep", type=Path, help="keep what was tried in this folder")
    given = parser.parse_args()
    keep = given.keep is not None
    # A shell's `&` and nohup ignore these in what they start, and a run honours that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    warnings.simplefilter("ignore", DeprecationWarning)  # fork and threads: none computes here
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        root = (given.keep or Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        # Hidden at the first use of a cache folder otherwise: nothing of the user's is touched.
        os.environ.update(
            RIB_CACHE=str(root / "no-cache"), HOME=str(root), HF_HOME=str(root / "hf")
        )
        (root / "site").mkdir()
        worlds.install(root / "site")
        worlds.warm()
        begun = time.monotonic()
        template = prepare(root / "template")
        sys.stderr.write(f"undisturbed: {time.monotonic() - begun:.0f} s\n")
        if given.flips:
            from flips import flip_all

            return flip_all(template, given.flips, given.artefact, root, given.jobs)
        tasks = tasks_of(given.only or list(KINDS), given.seed, given.count)
        done = []
        with multiprocessing.get_context("fork").Pool(given.jobs) as pool:
            for row in pool.imap_unordered(one, tasks):
                done.append(row)
                name, _, variant, outcome, why, seconds = row
                if outcome == OTHER or given.seed is not None:
                    sys.stderr.write(f"{outcome}: {name}: {variant} ({seconds:.1f} s)\n    "
                                     + why.replace("\n", "\n    ") + "\n")  # fmt: skip
        sys.stdout.write(table(done) + f"\n{time.monotonic() - begun:.0f} s\n")
        for word, what in ((CANNOT, "told as such"), (SKIPPED, "on this machine")):
            for row in done:
                if row[3] == word:
                    sys.stdout.write(f"{word}, {what}: {row[0]}: {row[2]} {row[4]}\n")
        other = sorted(row for row in done if row[3] == OTHER)
        for row in other:
            sys.stdout.write(f'other: {row[2]}: python tests/faults --only "{row[0]}" '
                             f"--seed {row[1]}\n")  # fmt: skip
        return 1 if other else 0


keep = False

if __name__ == "__main__":
    sys.exit(main())
