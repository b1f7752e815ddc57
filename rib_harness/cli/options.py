"""Options that several verbs share. Every option `--x-y` has the variable `RIB_X_Y`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rib_harness.catalog import Catalog
    from rib_harness.config import RunConfig
    from rib_harness.results import RunResult

Command = Callable[..., Any]


def option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """A click option with its environment variable; unset options are None or empty."""
    long = next(name for name in names if name.startswith("--"))
    variable = "RIB_" + long.split("/")[0].removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


class UserPath(click.Path):
    """A path in which `~` is the user's home, also in a variable and behind `=`."""

    def __init__(self, **settings: Any):
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, *context: Any) -> Any:
        """As click's, of the expanded path."""
        from rib_harness.given import user_path

        return super().convert(user_path(value), *context)


no_plugin = option(
    "--no-plugin", multiple=True, metavar="NAME", help="Do not load this plugin. Repeatable."
)
json_flag = option("--json", "as_json", is_flag=True, help="Machine-readable output.")
store = option("--store", type=UserPath(), help="Folder of results.  [default: rib-store]")

_RUN = [
    option("--suite", metavar="NAME", help="Benchmark.  [default: digits-rib]"),
    option("--backbone", "-b", multiple=True, metavar="REF",
           help="Backbone, e.g. timm:resnet50.a1_in1k. Repeatable.  [default: the suite's]"),
    option("--dataset", "-d", multiple=True, metavar="NAME",
           help="Member of the suite to use. Repeatable.  [default: all]"),
    option("--data", multiple=True, metavar="NAME:OPTION=VALUE",
           help="Options of a dataset, e.g. imagenet-v2:at=FILE; see `rib-harness show NAME`. "
                "Repeatable."),
    option("--limit", type=int, metavar="N",
           help="At most N images a class (in each group); part of every key."),
    store,
    option("--data-root", type=UserPath(file_okay=False),
           help="Folder that holds the datasets."),
    option("--expect", multiple=True, metavar="NAME=PERCENT|K/N",
           help="Known top-1 of the untouched backbone, e.g. imagenet=78.5 or imagenet=314/400; "
                "a miss stops the run. Repeatable.  [default: published accuracies]"),
    option("--allow-mismatch", is_flag=True, default=None,
           help="Go on where the untouched backbone misses a known answer."),
    option("--allow-full-disk", is_flag=True, default=None,
           help="Begin though the disk has too little room for all steps."),
    option("--offline", is_flag=True, default=None, help="Never use the network."),
    option("--config", "-c", type=UserPath(dir_okay=False),
           help="TOML file with any of these settings; options win over it."),
    option("--requires", multiple=True, metavar="REQ",
           help="Version that must be installed, e.g. 'rib-plugin-x>=0.3'. Repeatable."),
    option("--device", metavar="NAME", help="cpu, cuda or mps.  [default: the fastest]"),
    option("--workers", type=int, metavar="N",
           help="Threads that decode images.  [default: one a core]"),
    option("--threads", type=int, metavar="N",
           help="Threads of torch on a CPU; the last bits of weights depend on it.  [default: one "
                "for a small net, else one a core]"),
    option("--eval-batch-size", type=int, metavar="N",
           help="Images a forward pass in scoring; no prediction depends on it."),
    option("--rerun", multiple=True, metavar="METHOD|STEP",
           help="Do again what the store has of this method, backbone, dataset or step, and what "
                "rests on it; the old results stay until the new ones are whole. Repeatable."),
    option("--features", type=int, metavar="N",
           help="Keep features and logits of N images of each dataset, for metrics of drift and "
                "distance."),
    no_plugin,
]  # fmt: skip

_TRAIN = [
    option("--method", "-m", multiple=True, metavar="REF",
           help="Fine-tuning method, e.g. lwf or lwf:alpha=0.5. Repeatable."),
    option("--seed", "-s", multiple=True, type=int, metavar="N",
           help="Repeatable.  [default: 0]"),
    option("--set", "assignments", multiple=True, metavar="recipe.KEY=VALUE",
           help="A value of the recipe, e.g. recipe.lr=0.001. Repeatable. Keys: optimizer, lr, "
                "momentum, weight_decay, schedule, warmup_steps, batch_size, micro_batch, epochs, "
                "max_steps, clip_grad, precision, augment, per_class, held_out, keep, keep_by."),
    option("--search", multiple=True, metavar="OPTION=V,V…",
           help="Choose a method's option, or a value of the recipe, on a held-out part of each "
                "fine-tuning set, e.g. lambda=0.01,0.1,1, or of one method, ewc:lambda=0.1,1 or "
                "ft:recipe.lr=0.01,0.001. Repeatable."),
    option("--trials", type=int, metavar="N",
           help="Choose among N settings of each method, itself and N − 1 that are drawn from what "
                "it declares to be tuned by (its learning rate, above all), on a held-out part of "
                "each fine-tuning set: methods at equal effort."),
    option("--sweep", multiple=True, metavar="OPTION=V,V…",
           help="One method for each value, e.g. wise-ft:alpha=0,0.5,1. Repeatable."),
    option("--accept-license", multiple=True, metavar="NAME",
           help="Fine-tune on this dataset too, though its licence forbids it (objectnet). "
                "Repeatable."),
    option("--preset", type=click.Choice(["default", "paper"]),
           help="Named choices of the methods.  [default: default]"),
    option("--save-every", type=float, metavar="SECONDS",
           help="Time between saves of a fit under way.  [default: 30]"),
    option("--probe-every", type=int, metavar="N",
           help="Measure a small slice of each scoring set every N updates. Diagnostic: nothing "
                "is chosen by it."),
    option("--probe-images", type=int, metavar="N",
           help="Images of each scoring set in a probe.  [default: 64]"),
    option("--tracker", multiple=True,
           type=click.Choice(["tensorboard", "wandb", "mlflow", "trackio"]),
           help="Send training curves there. Repeatable."),
]  # fmt: skip


def labels_of(catalog: Catalog, kind: str, texts: Iterable[str]) -> set[str]:
    """As references where they are some, so that `lwf:alpha=1.0` finds `lwf`."""
    from rib_harness.errors import RibError

    found = set(texts)
    for text in texts:
        with suppress(RibError):
            found.add(catalog.bind(kind, text).label)
    return found


def chosen(
    catalog: Catalog, methods: Iterable[str], backbones: Iterable[str], suite: str | None
) -> Callable[[RunResult], bool]:
    """Whether a run is one of these; nothing named is all."""
    of_method = labels_of(catalog, "method", methods)
    of_backbone = labels_of(catalog, "backbone", backbones)
    return lambda run: (
        (not of_method or (run.trial_of or run.method) in of_method)
        and (not of_backbone or run.record["backbone"] in of_backbone)
        and (suite is None or run.record["suite"] == suite)
    )


def run_options(train: bool) -> Callable[[Command], Command]:
    """All settings of a run; the decorated function gets `config: RunConfig` and the rest."""

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def command(**given: Any) -> Any:
            names = [*_names(_RUN), *(_names(_TRAIN) if train else ())]
            settings = {name: given.pop(name) for name in names}
            return function(config=to_config(settings), **given)

        for one in reversed([*(_TRAIN if train else ()), *_RUN]):
            command = one(command)
        return command

    return decorate


def _names(options: list[Callable[[Command], Command]]) -> list[str]:
    def probe() -> None:
        """Collects the parameters."""

    for one in options:
        one(probe)
    return [str(p.name) for p in probe.__click_params__]  # type: ignore[attr-defined]


def to_config(settings: dict[str, Any]) -> RunConfig:
    """The configuration that the options, variables and the TOML file make."""
    from rib_harness.config import make_config

    file = settings.pop("config")
    values = {k: v for k, v in settings.items() if v is not None and v != ()}
    if expect := values.pop("expect", ()):
        pairs = [text.partition("=") for text in expect]
        wrong = [name for name, equals, value in pairs if not (name and equals and value)]
        if wrong:
            raise click.UsageError(
                f"--expect: expected NAME=PERCENT or NAME=K/N, got {wrong[0]!r}."
            )
        values["expect"] = {name.strip(): value.strip() for name, _, value in pairs}
    recipe = {}
    for text in values.pop("assignments", ()):
        name, equals, value = text.partition("=")
        if not equals or not name.startswith("recipe."):
            raise click.UsageError(f"--set: expected recipe.KEY=VALUE, got {text!r}.")
        recipe[name.removeprefix("recipe.").strip()] = value.strip()
    if recipe:
        values["recipe"] = recipe
    return make_config(values, file)
