"""Every method on digits-rib: two backbones, three seeds, mRI with intervals, as a table.

    python benchmarks/digits_methods.py                        # one to two hours of one core
    python benchmarks/digits_methods.py --backbone digits-vit  # or one backbone a process

What the store has is not done again, so it can be stopped and started. The table of
`docs/methods-on-digits.md` is what it prints at the end.
"""

import argparse
from collections import defaultdict
from statistics import mean, stdev

import rib_harness
from rib_harness import Results
from rib_harness.catalog import load_catalog
from rib_harness.errors import RibError
from rib_harness.results import collect
from rib_harness.store import Store

BACKBONES = ("digits-vit", "digits-conv")

#: As a user would ask for them: each at its defaults, `si` with the data that it cannot do
#: without, and one search.
METHODS = (
    "ft", "lp", "lp-ft", "ema", "bitfit", "lora", "lora:layers=q-v", "dora", "vera", "boft",
    "adapter", "moa", "visual-prompt", "vpt", "vpt:depth=deep", "nmtune", "l2-sp", "l1-sp", "ewc",
    "mas", "si:old=digits-train", "tpgm", "ftp", "lwf", "feature-distill", "wise-ft", "soup",
    "greedy-soup", "model-stock",
    "best-of:members=((lwf:alpha=0.3)+(lwf:alpha=1)+(lwf:alpha=3)+(lwf:alpha=10))",
)  # fmt: skip
SEARCHED = "lwf, alpha searched in 0.3, 1, 3, 10"
SEEDS = (0, 1, 2)

#: 97.5 % quantile of Student's t with n − 1 degrees of freedom.
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def run(backbone: str, store: str) -> None:
    """All methods that the backbone has the parts for."""
    for method in METHODS:
        try:
            rib_harness.run(backbone=backbone, method=method, seed=SEEDS, store=store)
        except RibError as problem:  # a refusal, or a step that failed: the table says which
            print(f"{backbone}: {problem}")


def cell(values: list[float]) -> str:
    """Mean and half width of its interval over seeds."""
    if len(values) < 2:
        return "–" if not values else f"{values[0]:+.2f}"
    half = T[len(values)] * stdev(values) / len(values) ** 0.5
    return f"{mean(values):+.2f} ± {half:.2f}"


def table(results: Results) -> str:
    """Markdown: one row a method, mRI of each backbone, sorted by the first."""
    catalog = load_catalog()
    mri: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    gain: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in results:
        if one.method is not None and one.complete:
            backbone, matrix = one.record["backbone"], one.matrix
            mri[one.method][backbone].append(matrix.mri)
            gain[one.method][backbone].append(mean(matrix.change(i, i) for i in matrix.sources))
    lines = [
        "| method | mRI, digits-vit | gain | mRI, digits-conv | gain |",
        "|---|---:|---:|---:|---:|",
    ]
    wanted = [catalog.bind("method", text).label for text in METHODS]
    for name in sorted(
        (name for name in wanted if name in mri),
        key=lambda name: -mean(mri[name][BACKBONES[0]] or mri[name][BACKBONES[1]]),
    ):
        cells = []
        for backbone in BACKBONES:
            gains = gain[name][backbone]
            cells += [cell(mri[name][backbone]), f"{mean(gains):+.2f}" if gains else "–"]
        shown = SEARCHED if name.startswith("best-of") else f"`{name}`"
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", choices=BACKBONES, action="append")
    parser.add_argument("--store", default="digits-methods")
    given = parser.parse_args()
    for backbone in given.backbone or BACKBONES:
        run(backbone, given.store)
    print(table(collect(Store(given.store))))


if __name__ == "__main__":
    main()
