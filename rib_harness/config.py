"""What was asked: one validated object from TOML, command line and environment.

The names are the same everywhere: the option `--data-root`, the TOML key `data-root` (or
`data_root`), the variable `RIB_DATA_ROOT` and the field `data_root`. Later wins: suite defaults,
preset, TOML, environment, command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from rib_harness.errors import ConfigError, nearest
from rib_harness.given import no_number, plain_values, read_toml, user_path
from rib_harness.known_answers import Expected

Preset = Literal["default", "paper"]
Model = TypeVar("Model", bound=BaseModel)


class _Settings(BaseModel):
    """Settings whose numbers are numbers."""

    @field_validator("*", mode="wrap")
    @classmethod
    def _numbers(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if cls.model_fields[str(info.field_name)].annotation is bool:
            return read(value)
        if wrong := no_number(value):
            raise ValueError(wrong)
        made = read(value)
        if wrong := no_number(made):  # a text of many digits
            raise ValueError(wrong)
        return made


class Recipe(_Settings):
    """How to fine-tune: the part of a run that every method shares. All of it is in the keys.

    Where a suite has no value of its own, these hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    optimizer: str = "sgd"  #: a class of torch.optim in lower case (no Nesterov), or a name of timm
    lr: float = Field(1e-3, gt=0)  #: peak learning rate
    momentum: float = Field(0.9, ge=0, lt=1)  #: for optimizers that have one
    weight_decay: float = Field(0.0, ge=0)  #: on all parameters
    schedule: str = "cosine"  #: cosine, linear or constant (per step), or a name of timm
    warmup_steps: int = Field(0, ge=0)  #: steps of linear warmup
    batch_size: int = Field(64, ge=1)  #: images an update
    micro_batch: int | None = Field(None, ge=1)  #: images a forward pass; gradients accumulate
    epochs: int = Field(10, ge=0)  #: passes over the fine-tuning set
    max_steps: int | None = Field(None, ge=0)  #: stop after so many updates
    clip_grad: float | None = Field(None, gt=0)  #: largest norm of the gradient
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  #: of training; evaluation is in fp32
    augment: Literal["none", "flip", "crop-flip"] = "none"  #: the protocol trains without
    per_class: int | None = Field(None, ge=1)  #: images a class to fine-tune on, drawn by the seed
    held_out: float = Field(0.0, ge=0, lt=1)  #: share not trained on, for choices such as --search
    keep: float = Field(1.0, gt=0, le=1)  #: share of each class to fine-tune on (data pruning)
    #: which to keep: drawn by the seed, or the hardest (-easy: the easiest) for the pretrained
    #: backbone, by its loss or by EL2N (arXiv:2107.07075)
    keep_by: Literal["random", "loss", "loss-easy", "el2n", "el2n-easy"] = "random"

    @model_validator(mode="after")
    def _keep_by_what(self) -> Recipe:
        if self.keep == 1 and self.keep_by != "random":
            raise ValueError(f"keep_by={self.keep_by} needs keep below 1, e.g. recipe.keep=0.5")
        return self

    @field_validator("micro_batch", "max_steps", "clip_grad", "per_class", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value == "none" else value


class RunConfig(_Settings):
    """A whole run. `resolved` is what a store keeps, and what `--config` reads again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str = "digits-rib"  #: which benchmark
    backbone: tuple[str, ...] = ()  #: references; empty is the suite's default
    method: tuple[str, ...] = ()  #: references; none evaluates the untouched backbone only
    dataset: tuple[str, ...] = ()  #: members of the suite to use; empty is all
    data: tuple[str, ...] = ()  #: options of datasets, e.g. "imagenet-v2:variant=top-images"
    seed: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = (0,)
    sweep: tuple[str, ...] = ()  #: values of options, each a method of its own: "alpha=0,0.5,1"
    search: tuple[str, ...] = ()  #: values to choose from on a held-out part of the fine-tuning set
    #: settings of each method that are tried, drawn from its knobs; chosen as by search
    trials: int | None = Field(None, ge=2, le=50)
    preset: Preset = "default"
    recipe: dict[str, Any] = Field(default_factory=dict)  #: values that replace the suite's
    limit: int | None = Field(None, ge=1)  #: images a class (in each group); in every key
    accept_license: tuple[str, ...] = ()  #: sources whose licence forbids to tune a model on them
    expect: dict[str, str] = Field(default_factory=dict)  #: known A_pre: dataset → % or K/N
    allow_mismatch: bool = False  #: go on where the untouched backbone misses a known answer
    allow_full_disk: bool = False  #: begin where the disk has too little room for all steps
    offline: bool = False  #: never use the network
    store: Path = Path("rib-store")
    data_root: Path | None = None
    no_plugin: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()  #: e.g. "rib-plugin-x>=0.3", checked before any work
    device: str | None = None  #: cpu, cuda, mps …; None lets Accelerate choose
    workers: int | None = Field(None, ge=1)  #: threads that decode images; None is one a core
    threads: int | None = Field(None, ge=1)  #: of torch on a CPU; None is by the size of the net
    eval_batch_size: int | None = Field(None, ge=1)  #: None: what is fast on the device
    save_every: float = Field(30.0, ge=0)  #: seconds between saves of a running fit
    probe_every: int | None = Field(None, ge=1)  #: updates between looks at the scoring sets
    probe_images: int = Field(64, ge=1)  #: of each scoring set, in such a look
    features: int | None = Field(None, ge=2)  #: images of each set whose features are kept
    rerun: tuple[str, ...] = ()  #: what to do again: methods, backbones, datasets, steps
    tracker: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()

    @field_validator(
        "backbone", "method", "dataset", "data", "sweep", "search", "accept_license", "no_plugin",
        "requires", "seed", "tracker", "rerun",
        mode="before",
    )  # fmt: skip
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | int) else value

    @field_validator("store", "data_root")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        return user_path(value) if value is not None else None

    @field_validator("seed")
    @classmethod
    def _at_least_one(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError("expected at least one seed")
        return value

    @field_validator("seed", "method", "backbone", "dataset", "tracker")
    @classmethod
    def _each_once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(value))

    @field_validator("expect", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        return {k: str(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    @field_validator("expect")
    @classmethod
    def _known_answers(cls, value: dict[str, str]) -> dict[str, str]:
        for text in value.values():
            Expected.parse(text)
        return value

    @field_validator("recipe")
    @classmethod
    def _plain_recipe(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {k.replace("-", "_"): v for k, v in value.items()}

    def resolved(self) -> dict[str, Any]:
        """Everything that is set, as TOML values with absolute paths."""
        # What is done again is said of one command, not of the run.
        data = self.model_dump(mode="json", exclude_none=True, exclude={"rerun"})
        # TOML has no null, and a recipe's "no limit" must replace what the suite says.
        data["recipe"] = {k: "none" if v is None else v for k, v in self.recipe.items()}
        for name in ("store", "data_root"):
            if name in data:
                data[name] = str(Path(data[name]).absolute())
        return {
            key.replace("_", "-"): value
            for key, value in data.items()
            if value not in ([], {}) and value is not False
        }


def make_config(values: Mapping[str, Any], file: Path | None = None) -> RunConfig:
    """The configuration from a TOML file and values that replace its own.

    Raises:
        ConfigError: every unknown key and every bad value, all at once.
    """
    merged: dict[str, Any] = {}
    try:
        values = plain_values(values)
    except RecursionError:
        raise ConfigError(["The settings are nested too deeply: give fewer levels."]) from None
    if file is not None:
        read = read_toml(user_path(file), "The configuration file")
        merged = {key.replace("-", "_"): value for key, value in read.items()}
    tables = {name: [merged.get(name, {}), values.get(name, {})] for name in ("recipe", "expect")}
    merged.update(values)
    for name, layers in tables.items():
        wrong = [layer for layer in layers if not isinstance(layer, Mapping)]
        merged[name] = wrong[0] if wrong else {**layers[0], **layers[1]}
    problems: list[str] = []
    config = _collect(RunConfig, merged, "", problems)
    recipe = merged.get("recipe")
    if isinstance(recipe, Mapping):
        plain = {str(k).replace("-", "_"): v for k, v in recipe.items()}
        _collect(Recipe, plain, "recipe.", problems)
    if problems or config is None:
        raise ConfigError(problems)
    return config


def make_recipe(*layers: Mapping[str, Any]) -> Recipe:
    """The recipe, later layers first in line.

    >>> make_recipe({"lr": 0.1, "epochs": 3}, {"lr": 0.2}).lr
    0.2
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(plain_values(layer))
    problems: list[str] = []
    recipe = _collect(Recipe, merged, "recipe.", problems)
    if recipe is None:
        raise ConfigError(problems)
    return recipe


def check_requirements(requires: tuple[str, ...]) -> None:
    """Raise where an installed distribution is not what the configuration pins."""
    problems = []
    for text in requires:
        try:
            requirement = Requirement(text)
            if requirement.url or requirement.extras:
                problems.append(
                    f"requires: {text!r} has an URL or extras, which cannot be checked: expected "
                    "names and versions only, such as 'rib-plugin-x>=0.3'."
                )
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue  # of another platform or Python
            found = metadata.version(requirement.name)
        except InvalidRequirement:
            problems.append(
                f"requires: expected a requirement such as 'rib-plugin-x>=0.3', got {text!r}."
            )
        except metadata.PackageNotFoundError:
            problems.append(f"requires {text}, which is not installed: pip install '{text}'")
        else:
            if not requirement.specifier.contains(found, prereleases=True):
                problems.append(f"requires {text}, but {found} is installed.")
    if problems:
        raise ConfigError(problems)


def _collect(
    model: type[Model], values: Mapping[str, Any], prefix: str, problems: list[str]
) -> Model | None:
    """The object, or None with every problem added to the list."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        for item in error.errors():
            name = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                known = [f if prefix else f.replace("_", "-") for f in model.model_fields]
                close = re.sub(r"'([\w-]+)'", rf"'{prefix}\1'", nearest(name, known))
                listed = ", ".join(prefix + one for one in known)
                problems.append(f"{prefix}{name} is no setting.{close} Settings: {listed}.")
            elif name.partition(".")[0] in ("backbone", "method"):
                problems.append(
                    f"{name}: expected text, or several, got {_short(item['input'])}. A model or a "
                    "class is not taken as it is: give its weights as 'timm:TAG,weights=FILE', or "
                    "make it a plugin."
                )
            else:
                said = str(item["msg"]).removeprefix("Value error, ")
                problems.append(f"{prefix}{name}: {said}, got {_short(item['input'])}.")
        return None


def _short(value: Any) -> str:
    """A value for a message; of a long one its type."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of thousands of digits, or nested as deeply
        text = "\n"
    return text if len(text) <= 80 and "\n" not in text else f"an object of {type(value).__name__}"
