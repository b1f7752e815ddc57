"""Makes `methods.md` from what the methods' specs and docstrings say.

python docs/make_methods.py > docs/methods.md
"""

import re
import sys
from collections.abc import Iterable

from rib_harness.catalog import Component, load_catalog
from rib_harness.options import REQUIRED, Option

HEAD = """# Fine-tuning methods

Made by `docs/make_methods.py` from the methods' own docstrings; `rib-harness show NAME` prints the
same. θ₀ are the pretrained weights, θ the fine-tuned, f the logits, Φ the features that the head
sees. Costs in words are estimates; measured ones are in
[benchmarks](../benchmarks/README.md#cost-of-the-methods), results on the embedded suite in
[methods-on-digits.md](methods-on-digits.md).

**Options** stand behind a colon: `lwf:alpha=0.5,temperature=4`. **Composition**: an option that is
a reference may have options of its own in brackets, and `a+b` means both:
`wise-ft:base=(lwf:alpha=2)`, `soup:members=pretrained+ft+ewc+lwf`, `lp-ft:second=lora`; `ft@1` is
`ft` with another seed. A cycle, a member that no method is called, or one that cannot be averaged
is refused when planning; so is a method on a backbone that lacks what it needs: `blocks` of a
vision transformer, attention with a fused `qkv` layer, a `text-tower`, a linear `projection` behind
the image tower.

**Search.** `--search lambda=0.01,0.1,1` tries each value of a method's option on the training part
of each fine-tuning set and takes the one with the best accuracy on the held-out part
(`recipe.held_out`, 20 % unless given; of all methods of that run, so that they stay comparable).
What was tried and chosen is in the results, as `facts`. A method is given its fine-tuning set, and
never sees a dataset that scores it; whole photographs are held out, with all their versions. A
value that diverges is not chosen. To search an option of a base, name the bases:
`-m wise-ft --search "base=(lwf:alpha=1),(lwf:alpha=3)"`. `--sweep alpha=0,0.25,0.5,0.75,1` shows
every value as a method of its own instead, evaluated in one pass.

**Trials.** `--trials 8` tries eight settings of every method: itself, and seven drawn from the
knobs that it declares (below: `--trials` draws …), its learning rate among them. The draws depend
on a knob's name and the number of the trial only, so that more trials begin with the same ones and
methods share what they start from: a searched WiSE-FT costs no training beside a searched `ft`. All
trials are kept and scored, and compared at the same gain: [Methods at equal
effort](equal-effort.md).

**A recipe of one's own**: `flyp:recipe.batch_size=512`, `ft:recipe.lr=0.003`; what a method starts
from is trained with it too. `--search ft:recipe.lr=0.01,0.001` chooses. The images that are trained
on (`held_out`, `per_class`, `keep`) are the same for all that a method is made of.

**Presets.** `default` follows each method's own paper where the protocol allows it (the texts below
say where not), `--preset paper` the reference code of ImageNet-RIB where it chose otherwise. Every
table names its preset.

```console
rib-harness run -m ft -m ewc --search lambda=0.01,0.1,1
rib-harness run -m wise-ft --sweep alpha=0,0.25,0.5,0.75,1
rib-harness run -m soup:members=pretrained+ft+lwf -m lp-ft:second=lora
```
"""


#: What papers propose that this project was asked to measure: idea, arXiv id, where, how far.
IDEAS = (
    ("function-space regularisation", "2509.05328", "`fsr`",
     "after: its simulation of shifts and its constants are ours"),
    ("layer-wise ensemble of two views (LEVI)", "2402.04644", "`levi`",
     "after: only summaries could be read"),
    ("two batch-norm statistics (TWINS)", "2303.11135", "`twins`",
     "built; checked against its authors' code; the adversary if `eps` asks for it"),
    ("self-distillation before fine-tuning", "2210.02871", "`self-distillation`",
     "after: features of masked images stand for masked auto-encoding"),
    ("deep ensembles of fine-tunings", "2010.06866", "`ensemble:members=ft+ft@1+ft@2`", "built"),
    ("fine-tuning on a pruned subset", "2107.07075", "`recipe.keep`, `recipe.keep_by`",
     "built, for every method"),
    ("feature protection", "2405.16027", "`feature-distill`, `l1-sp`",
     "built, as that paper's baselines"),
    ("NMTune", "2309.17002", "`nmtune`", "built; its loss is checked against its authors' code"),
    ("Model Stock", "2403.19522", "`model-stock`", "built"),
    ("mixture of adapters", "2310.11031", "`moa`", "built; checked against its authors' code"),
    ("pretraining data beside the new", "2111.12292", "`pretraining-data`",
     "after: nearest images instead of optimal transport"),
    ("transfer between pretrained backbones", "2310.17653", "`dp-transfer`",
     "built, beside cross-entropy"),
    ("sparse and low-rank updates", "2111.00160", "`sparse-lowrank`",
     "its updates; the pruning of the model is left out"),
    ("nearest fine-tuning images of a flip", "2311.03386",
     "the page's flip explorer, with `--features`", "built, on the untouched encoder's features"),
    ("checkpoints from the middle of pretraining", "2203.04668",
     "`rib-harness study run pretraining-steps`", "built, on digits"),
    ("item response theory over test sets", "2106.00840", "`rib-harness compare --irt`",
     "built, with two parameters an image"),
    ("effective robustness over several sets", "2302.01381", "`effective-robustness-multi-id`",
     "built, with a baseline of one's own models"),
    ("a score on synthetic Gaussians (SynBench)", "2210.02989", "–",
     "not built: metrics read what a run keeps, and this one has to run the backbone"),
)  # fmt: skip


def ideas() -> str:
    """A row an idea."""
    rows = ["## Ideas, and where they are", "",
            "*After*: the idea is built, and what could not be read of it is ours, as the method "
            "says.", "", "| idea | arXiv | here | state |", "|---|---|---|---|"]  # fmt: skip
    rows += [
        f"| {idea} | [{paper}](https://arxiv.org/abs/{paper}) | {where} | {state} |"
        for idea, paper, where, state in IDEAS
    ]
    return "\n".join([*rows, ""])


def methods() -> list[Component]:
    """In the order in which the plugin lists them."""
    found = [c for c in load_catalog().list("method") if c.plugin.name == "cl-methods"]
    listed = (found[0].plugin.components or {})["method"]
    return sorted(found, key=lambda component: listed.index(component.id))


def filled(text: str, defaults: dict[str, object]) -> str:
    """A need with the options' defaults: `ft`, or what has to be said."""
    name = text.removeprefix("*").strip("{}")
    given = defaults.get(name, name)
    return f"`{name}`" if given == REQUIRED else f"`{given}` (option `{name}`)"


def overview(components: list[Component]) -> str:
    """One row a method."""
    rows = ["| method | what it does | trains | needs |", "|---|---|---|---|"]
    for component in components:
        spec = component.spec
        defaults = {option.name: option.default for option in component.signature.options}
        needs = [filled(text, defaults) for text in (*spec.needs, *spec.calls)]
        for text in spec.reads:
            given = defaults[text.strip("{}")]
            needs.append("another dataset" + ("" if given == REQUIRED else " (if asked for)"))
        needs += ["another backbone" for _ in spec.teachers]
        for text in spec.requires:
            part, _, only = text.partition(":")
            needs.append(f"a backbone with `{part}`" + (f" (for `{only}`)" if only else ""))
        if spec.holds_out:
            needs.append("held-out images")
        rows.append(
            f"| [{spec.name}](#{spec.name}) | {spec.summary} | {spec.trains} | "
            f"{'; '.join(needs) or '–'} |"
        )
    return "\n".join(rows)


def described(doc: str) -> tuple[str, str]:
    """A component's docstring as Markdown, without its `Args:`; and its `Source:`."""
    text = re.sub(r"\nArgs:\n((?:[ \t]+.*\n?|\n)+)", "\n", doc + "\n")
    source = re.search(r"^Source: ((?:.+\n)+)", text, re.MULTILINE)
    text = text.replace(source[0] if source else "", "")
    text = re.sub(r"^(Helps|Cost): (.)", lambda m: f"**{m[1]}:** {m[2]}", text, flags=re.MULTILINE)
    return text.strip(), " ".join(source[1].split()) if source else ""


def options_table(options: Iterable[Option]) -> list[str]:
    """One row an option, with its default and what its docstring says; nothing if there is none."""
    rows = []
    for option in options:
        default = "required" if option.default == REQUIRED else f"`{option.default}`"
        rows.append(f"| `{option.name}` | {default} | {option.doc.replace('|', chr(92) + '|')} |")
    return ["| option | default | |", "|---|---|---|", *rows, ""] if rows else []


def section(component: Component) -> str:
    """A method's docstring as Markdown."""
    spec, signature = component.spec, component.signature
    text, source = described(signature.doc)
    lines = [f"## {spec.name}", "", text, "", *options_table(signature.options)]
    for name, values in spec.presets.items():
        chosen = ", ".join(f"`{key}={value}`" for key, value in values.items())
        lines += [f"Preset `{name}`: {chosen}.", ""]
    if spec.knobs:
        lines += [f"`--trials` draws: {', '.join(f'`{knob}`' for knob in spec.knobs)}.", ""]
    if source:
        lines += [f"Source: {source}", ""]
    return "\n".join(lines)


def page() -> str:
    """All of it."""
    components = methods()
    return "\n".join([HEAD, overview(components), "", ideas(), *map(section, components)])


if __name__ == "__main__":
    sys.stdout.write(page())
