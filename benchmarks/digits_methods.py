"""Every method on digits-rib, at its defaults or at equal effort: two backbones, three seeds.

    python benchmarks/digits_methods.py                        # at defaults; hours of one core
    python benchmarks/digits_methods.py --trials 8             # eight settings of each method
    python benchmarks/digits_methods.py --backbone digits-vit  # or one backbone a process
    python benchmarks/digits_methods.py --tables               # of the rows that are there

A row a run goes to `docs/methods-on-digits.csv`, and what is there is not run again: so it can be
stopped and started, with or without its store. A row holds as long as the plan would make the same
steps: where a method's version has been raised since, it is run anew. The tables and the figure of
`docs/methods-on-digits.md` are what `--tables` makes.
"""

import argparse
import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

from rib_harness import Arm, RunResult, arms_of
from rib_harness.config import make_config
from rib_harness.errors import RibError
from rib_harness.frontier import Frontier, Trial
from rib_harness.runner import PartialFailureError, execute, open_session

BACKBONES = ("digits-vit", "digits-conv")

#: As a user would ask for them: each at its defaults, with the data that it cannot do without, and
#: at defaults one search. `dp-transfer` needs another backbone, and would bring in what that knows.
METHODS = (
    "ft", "lp", "lp-ft", "ema", "freeze-embed", "bitfit", "lora", "lora:layers=q-v",
    "sparse-lowrank", "dora", "vera", "boft", "adapter", "moa", "visual-prompt", "vpt",
    "vpt:depth=deep", "nmtune", "levi", "l2-sp", "l1-sp", "ewc", "mas", "si:old=digits-train",
    "tpgm", "ftp", "layer-decay", "auto-rgn", "spd", "mixout", "lwf", "feature-distill", "ldifs",
    "fsr", "twins", "self-distillation", "pretraining-data:data=digits-train", "wise-ft", "lines",
    "soup", "greedy-soup", "model-stock", "ensemble", "dawin",
)  # fmt: skip
SEARCHED = "best-of:members=((lwf:alpha=0.3)+(lwf:alpha=1)+(lwf:alpha=3)+(lwf:alpha=10))"
SHOWN = {SEARCHED: "lwf, alpha searched in 0.3, 1, 3, 10"}
SEEDS = (0, 1, 2)

#: Gains on held-out images, in points, at which methods are compared.
AT = {"digits-vit": (15.0, 25.0), "digits-conv": (5.0, 9.0)}

#: 97.5 % quantile of Student's t with n − 1 degrees of freedom.
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = ("backbone", "trials", "method", "setting", "seed", "gain", "mri", "steps")


class Rows:
    """The file of rows: what was measured, and by which steps.

    Args:
        path: a CSV with a row a run. Several processes may add to it.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.exists():
            self._add(COLUMNS)

    def read(self) -> list[dict[str, str]]:
        """All of them."""
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def of(self, records: Iterable[dict[str, Any]]) -> list[dict[str, str]] | None:
        """The rows of what a plan would make; None if one is missing or of other steps."""
        has = {row["steps"]: row for row in self.read()}
        steps = [steps_of(record) for record in records]
        return [has[one] for one in steps] if has.keys() >= set(steps) else None

    def add(self, method: str, trials: int | None, run: RunResult) -> None:
        """The row of a run; without numbers where a trial diverged."""
        arm = Arm((run,))
        numbers = (f"{arm.gain:.4f}", f"{arm.mri:.4f}") if run.complete else ("", "")
        record = run.record
        self._add((record["backbone"], trials or "", method, run.method or "", record["seed"],
                   *numbers, steps_of(record)))  # fmt: skip

    def _add(self, values: Iterable[Any]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(values)


def steps_of(record: Any) -> str:
    """A digest of the keys of a run's fine-tunings: of all that decides its numbers."""
    text = json.dumps([record["finetune"], record.get("trial_of")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings(
    backbone: str, method: str, seed: int, trials: int | None, store: str
) -> dict[str, Any]:
    """Of one run."""
    return {
        "backbone": backbone, "method": method, "seed": seed, "trials": trials, "store": store,
    }  # fmt: skip


def planned(one: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of the runs of a plan that are shown: the trials, where there are some."""
    records = open_session(make_config(one)).plan.records
    trained = [dict(record) for record in records if record["method"] is not None]
    return [record for record in trained if bool(record.get("trial_of")) == bool(one["trials"])]


def run(one: dict[str, Any], rows: Rows) -> None:
    """Run what the file lacks, and add it."""
    try:
        if rows.of(planned(one)) is not None:
            return
        session = open_session(make_config(one))
        try:
            results = execute(session)
        except PartialFailureError as problem:
            results = problem.results
            print(f"{one['backbone']}: {one['method']}: {problem}", flush=True)
    except RibError as problem:  # a refusal: the table has a dash
        print(f"{one['backbone']}: {problem}", flush=True)
        return
    for arm in arms_of(results):
        if arm.method is not None and bool(arm.runs[0].trial_of) == bool(one["trials"]):
            rows.add(one["method"], one["trials"], arm.runs[0])


@dataclass(frozen=True)
class Measured:
    """Numbers of one setting, in points.

    Args:
        gains, mris: one a seed.
    """

    gains: tuple[float, ...]
    mris: tuple[float, ...]

    @cached_property
    def gain(self) -> float:
        """Mean over seeds."""
        return mean(self.gains)

    @cached_property
    def mri(self) -> float:
        """Mean over seeds."""
        return mean(self.mris)


def measured(rows: Rows, backbone: str, method: str, trials: int | None) -> list[Measured] | None:
    """A method's settings; None where the backbone lacks what it needs, or a row is missing."""
    by_setting: dict[str, list[dict[str, str]]] = defaultdict(list)
    for seed in SEEDS:
        try:
            found = rows.of(planned(settings(backbone, method, seed, trials, "nowhere")))
        except RibError:
            return None
        if found is None:
            print(f"missing: {backbone}, {method}, seed {seed}, trials {trials}")
            return None
        for row in found:
            by_setting[row["setting"]].append(row)
    whole = [same for same in by_setting.values() if all(row["mri"] for row in same)]
    return [
        Measured(*(tuple(float(row[what]) for row in same) for what in ("gain", "mri")))
        for same in whole
    ]


def mean_and_half(values: tuple[float, ...]) -> str:
    """Mean and half width of its interval over seeds."""
    half = T[len(values)] * stdev(values) / len(values) ** 0.5
    return f"{mean(values):+.2f} ± {half:.2f}"


def at_defaults(rows: Rows) -> Iterator[str]:
    """Markdown: a row a method, mRI and gain of each backbone, sorted by the first."""
    yield "| method | mRI, digits-vit | gain | mRI, digits-conv | gain |"
    yield "|---|---:|---:|---:|---:|"
    lines = []
    for method in (*METHODS, SEARCHED):
        found = [measured(rows, backbone, method, None) for backbone in BACKBONES]
        cells = [f"{mean_and_half(f[0].mris)} | {f[0].gain:+.2f}" if f else "– | –" for f in found]
        first = next((f[0].mri for f in found if f), None)
        if first is not None:
            lines.append((first, f"| {SHOWN.get(method, f'`{method}`')} | {' | '.join(cells)} |"))
    yield from (line for _, line in sorted(lines, reverse=True))


def frontiers(rows: Rows, backbone: str, trials: int) -> list[Frontier]:
    """Of every method whose trials are there."""
    made = []
    for method in METHODS:
        found = measured(rows, backbone, method, trials)
        if found is not None:
            points = tuple(Trial(cast(Arm, one), one.gain, one.mri) for one in found)
            made.append(Frontier(f"trials({method},{trials})", points, trials, "", backbone))
    return made


def at_equal_effort(rows: Rows, backbone: str, trials: int) -> Iterator[str]:
    """Markdown: a row a method, mRI where it has the gains that are asked for."""
    found = [one for one in frontiers(rows, backbone, trials) if one.edge]
    gains = AT[backbone]
    heads = " | ".join(f"mRI at +{gain:g}" for gain in gains)
    yield f"| method | whole | gains | {heads} | less wherever it is than |"
    yield f"|---|---:|---:|{'---:|' * len(gains)}---|"
    best = (-1e9,) * len(gains)
    lines = []
    for one in found:
        cells, order = [], []
        for gain in gains:
            parts = one.at(gain)
            if parts is None:
                cells.append("–")
                order.append(best[0])
                continue
            seeds = zip(*(cast(Any, arm).mris for arm, _ in parts), strict=True)
            shares = [share for _, share in parts]
            mris = tuple(sum(s * m for s, m in zip(shares, seed, strict=True)) for seed in seeds)
            cells.append(mean_and_half(mris))
            order.append(mean(mris))
        by = [f"`{other.name}`" for other in found if other is not one and one.dominated_by(other)]
        edge = one.edge
        lines.append((order, f"| `{one.name}` | {len(one.trials)} of {one.drawn} | "
                      f"{edge[0].gain:+.1f} to {edge[-1].gain:+.1f} | {' | '.join(cells)} | "
                      f"{len(by) or ''}{': ' if by else ''}{', '.join(by[:2])}"
                      f"{', …' if len(by) > 2 else ''} |"))  # fmt: skip
    yield from (line for _, line in sorted(lines, reverse=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", choices=BACKBONES, action="append")
    parser.add_argument("--method", action="append", help="all, unless given")
    parser.add_argument("--seed", type=int, action="append", help="0, 1 and 2, unless given")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--store", default="digits-methods")
    parser.add_argument("--rows", type=Path, default=DOCS / "methods-on-digits.csv")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    given = parser.parse_args()
    rows, backbones = Rows(given.rows), given.backbone or BACKBONES
    if not given.tables:
        methods = given.method or (METHODS if given.trials else (*METHODS, SEARCHED))
        for seed in given.seed or SEEDS:
            for backbone in backbones:
                for method in methods:
                    run(settings(backbone, method, seed, given.trials, given.store), rows)
        return
    print("\n".join(at_defaults(rows)))
    for backbone in backbones:
        print(f"\n{backbone}\n")
        print("\n".join(at_equal_effort(rows, backbone, given.trials or 8)))


if __name__ == "__main__":
    main()
