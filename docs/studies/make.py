"""Makes `docs/studies.md` and its figures by running the studies on digits-rib.

python docs/studies/make.py [STORE]

About 25 minutes on one core in a new store; seconds in one that has the runs already.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

from rib_harness.cli.study_ import command
from rib_harness.report.figures import before_after, save
from rib_harness.study import load_studies

HERE = Path(__file__).parent

#: What each shows on digits, in a sentence: to be looked at again when the numbers change.
SHOWN = {
    "pretraining": (
        "Every pretraining loses, and the four augmented ones, 59 to 66 % before, end within three "
        "points of each other: those that came with most lose most, as in the paper. Robustness "
        "here does not grow steadily with the number of digits. The one without augmentation had "
        "little to lose, and at this learning rate most of its fine-tunings fail to train at all."
    ),
    "radar": (
        "Both backbones learn the renditions to 100 % and lose about 16 points on fresh digits "
        "(v2); the one with more pretraining loses still more on drawings. On the hard set (a) "
        "neither change is clear of zero."
    ),
    "methods": (
        "Every method loses robustness, plain fine-tuning most on both backbones. Linear probing "
        "loses least and also learns half as much of the fine-tuning set or less; WiSE-FT and the "
        "soup keep most of the gain for less than half of the loss. LP-FT, at the same rate, is "
        "near plain fine-tuning."
    ),
    "learning-curves": (
        "The robustness goes first: half of the loss is there within 5 to 15 updates, before the "
        "fine-tuning set is learnt, and within the 10 updates of warmup or little after them; then "
        "it stays, or comes back by a few points as the learning rate falls."
    ),
    "hyperparameters": (
        "It shrinks, but in none of these recipes does it go away. The learning rate is the "
        "largest part of it: at a tenth of the suite's, or with Adam at a small one, a third of "
        "the loss is left and most of the gain."
    ),
    "sizes": (
        "The loss is there from one image a class on, whatever the size of the pretraining, and "
        "more images raise the gain much more than they change the loss: with the suite's learning "
        "rate even a fit that gains nothing on its own set does the damage."
    ),
    "distance": (
        "A weak tie at best: farther sets lose a little more by three distances (ρ about −0.35), "
        "but nearest-class-mean accuracy, which is high where sets are near, has the same sign "
        "instead of the opposite one."
    ),
    "pretraining-steps": (
        "The last third of the pretraining adds three points before fine-tuning and none after "
        "plain fine-tuning: all that it adds is lost, and the loss grows with the robustness that "
        "is there. After linear probing most of it is kept, and the last checkpoint is the best."
    ),
}

#: Pretraining → mean accuracy before and after plain fine-tuning of a ViT-B/16, decoded from the
#: vector figure that the authors publish with their code (arXiv:2410.21582).
PUBLISHED = {
    "IN-1K + AugReg": (42.72, 44.01),
    "IN-1K + SAM": (42.88, 45.40),
    "IN-21K": (50.10, 49.99),
    "IN-21K-P": (53.32, 52.85),
    "IN-21K + AugReg": (57.78, 52.27),
    "OpenAI": (60.64, 22.61),
    "LAION-2B": (61.49, 23.40),
}

REDRAWN = """## The published chart

The authors' bar chart for ViT-B/16, redrawn from its numbers by the code that draws ours: one run,
no error bars. The two CLIP models are the most robust before, and the least after.

![Published: mean OOD accuracy before and after fine-tuning](studies/published.svg)
"""

HEAD = """# Studies

Made by `docs/studies/make.py`, which runs the seven studies of the paper and its page, and one
more, on the embedded suite `digits-rib`: small nets on handwritten digits, so that every command
here runs offline in minutes. They show what the harness does; for what the paper found, ask the
paper's suite:

```console
rib-harness study list
rib-harness study run pretraining --suite imagenet-rib --data-root DIR --dry-run
```

A study is a TOML file: a question, a figure, and for each suite the settings of a run, with
recipes that are varied one at a time. Those that ship are in `rib_harness/studies/`; one of your
own is run by its path, `rib-harness study run ./mine.toml`:

```toml
title = "mRI over weight decay"
question = "Does weight decay keep robustness?"
figure = "curves"  # or before-after, radar, dots, learning, scatter, equal-gain

[suites.digits-rib]  # any setting of `rib-harness run`
backbone = ["digits-vit"]
method = ["ft", "lwf"]
vary.weight_decay = [{ weight_decay = 0.0 }, { weight_decay = 0.01 }, { weight_decay = 0.1 }]
```

The options of `run` win over the file (`--seed 0 --seed 1 --limit 4`). Every configuration goes
into one store, so studies share their runs, a study that was stopped goes on with the same
command, and one configuration that fails loses no other. Each writes a table (Markdown), all its
numbers (CSV) and the figure (PDF, SVG and PNG) into `--out`.

The ninth, `equal-effort`, is on [a page of its own](equal-effort.md).
"""


def main(store: str) -> None:
    """Run them all, keep the figures here and write the page."""
    page = [HEAD]
    with tempfile.TemporaryDirectory() as folder:
        studies = load_studies()
        for name in SHOWN:  # that of equal effort has a page of its own
            study = studies[name]
            command(["run", name, "--store", store, "--out", folder], standalone_mode=False)
            shutil.copy(Path(folder) / f"{name}.svg", HERE / f"{name}.svg")
            table = (Path(folder) / f"{name}.md").read_text(encoding="utf-8")
            table = re.sub(r"\A.*?\n\n.*?\n\n", "", table)  # its title and question stand above
            page.append(
                f"## {study.title}\n\n{study.question} "
                f"In the paper: {study.paper[0].lower()}{study.paper[1:]}\n\n"
                f"```console\nrib-harness study run {name}\n```\n\n"
                f"{SHOWN[name]}\n\n![{study.title}](studies/{name}.svg)\n\n{table}"
            )
    names, values = list(PUBLISHED), list(zip(*PUBLISHED.values(), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        save(before_after(names, *values), Path(folder) / "published")
        shutil.copy(Path(folder) / "published.svg", HERE / "published.svg")
    page.append(REDRAWN)
    (HERE.parent / "studies.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "studies-store")
