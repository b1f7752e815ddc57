"""The configuration: what is asked, and what is said of a mistake in it."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import tomli_w
from pydantic import BaseModel

from rib_harness import ConfigError, load_catalog
from rib_harness.cache import cache_dir
from rib_harness.cli import cli
from rib_harness.config import Recipe, RunConfig, check_requirements, make_config, make_recipe


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        file = tmp_path / "run.toml"
        file.write_text(text)
        return file

    return write


def problems(values: dict[str, Any], file: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make_config(values, file)
    return caught.value.problems


# Mistakes


def test_all_mistakes_of_a_run_at_once() -> None:
    values = {"limit": 0, "preset": "papers", "sed": 3, "save_every": -1, "device": 3}
    found = problems(values)
    assert [text.partition(":")[0].split(" ")[0] for text in found] == [
        "preset",
        "limit",
        "device",
        "save_every",
        "sed",
    ]
    assert "preset: Input should be 'default' or 'paper', got 'papers'." in found
    assert "limit: Input should be greater than or equal to 1, got 0." in found
    with pytest.raises(ConfigError) as caught:
        make_config(values)
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 problems in the configuration:"
    assert lines[1:] == [f"  - {text}" for text in found]


def test_one_mistake_is_said_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({"limit": "many"})
    assert str(caught.value) == (
        "limit: Input should be a valid integer, unable to parse string as an integer, got 'many'."
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("methods", "method"),
        ("backbones", "backbone"),
        ("data_rot", "data-root"),
        ("eval_batchsize", "eval-batch-size"),
        ("recipy", "recipe"),
    ],
)
def test_an_unknown_setting_offers_the_nearest(name: str, meant: str) -> None:
    (text,) = problems({name: "x"})
    assert text.startswith(f"{name} is no setting. Did you mean '{meant}'")
    assert "Settings: suite, backbone, method, dataset, data, seed, " in text


def test_a_setting_like_no_other_offers_nothing() -> None:
    (text,) = problems({"zzz": 1})
    assert text.startswith("zzz is no setting. Settings: suite, ")


def test_all_mistakes_of_a_recipe_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make_recipe({"lr": 0, "epochs": -1}, {"precision": "int8", "lrate": 0.5})
    *values, unknown = caught.value.problems
    assert values == [
        "recipe.lr: Input should be greater than 0, got 0.",
        "recipe.epochs: Input should be greater than or equal to 0, got -1.",
        "recipe.precision: Input should be 'fp32', 'bf16' or 'fp16', got 'int8'.",
    ]
    assert unknown.startswith("recipe.lrate is no setting. Did you mean 'recipe.lr'")
    assert "Settings: recipe.optimizer, recipe.lr, recipe.momentum, " in unknown


def test_a_value_of_a_recipe_like_no_other_offers_nothing() -> None:
    with pytest.raises(ConfigError, match=r"^recipe\.zzz is no setting\. Settings: recipe\."):
        make_recipe({"zzz": 1})


BOUNDS = {
    "lr": [0, -1, "fast"],
    "momentum": [-0.1, 1],
    "weight_decay": [-1e-9],
    "warmup_steps": [-1, 1.5],
    "batch_size": [0],
    "micro_batch": [0],
    "epochs": [-1, 0.5],
    "max_steps": [-1],
    "clip_grad": [0],
    "augment": ["flips"],
    "optimizer": [None],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BOUNDS.items() for value in values]
)
def test_a_value_that_no_recipe_has(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^recipe\.{name}: .*, got {value!r}\.$"):
        make_recipe({name: value})


def test_a_recipe_and_a_run_cannot_be_changed() -> None:
    for made in (make_recipe(), make_config({})):
        with pytest.raises(ValueError, match="frozen"):
            made.seed = 1


def test_a_recipe_that_is_no_table(toml: Any) -> None:
    (text,) = problems({}, toml("recipe = 3\n"))
    assert text.startswith("recipe: ")


def test_mistakes_of_the_recipe_and_the_rest_at_once() -> None:
    assert len(problems({"sed": 3, "recipe": {"momentun": 0.5}})) == 2


# Recipes


def test_later_layers_of_a_recipe_win() -> None:
    recipe = make_recipe({"lr": 0.1, "epochs": 3}, {"lr": 0.2}, {}, {"epochs": 4})
    assert (recipe.lr, recipe.epochs, recipe.batch_size) == (0.2, 4, 64)


def test_texts_of_the_command_line_become_numbers() -> None:
    recipe = make_recipe({"lr": "1e-2", "epochs": "3", "max_steps": "7"})
    assert (recipe.lr, recipe.epochs, recipe.max_steps) == (0.01, 3, 7)


def test_the_recipe_of_the_papers_suite_is_that_of_its_code() -> None:
    """Expected: github.com/FieteLab/ImageNet-RIB, but fp32 where that trains in fp16."""
    suite = load_catalog(environ={}).get("suite", "imagenet-rib")
    assert make_recipe(suite.spec.recipe).model_dump() == {
        "optimizer": "sgd",
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "schedule": "cosine",
        "warmup_steps": 196,
        "batch_size": 64,
        "micro_batch": None,
        "epochs": 10,
        "max_steps": None,
        "clip_grad": None,
        "precision": "fp32",
        "augment": "none",
        "per_class": None,
        "keep": 1.0,
        "held_out": 0.0,
        "keep_by": "random",
    }


def test_the_recipes_of_the_installed_suites_are_valid() -> None:
    suites = load_catalog(environ={}).list("suite")
    assert suites
    for suite in suites:
        for preset in ({}, *suite.spec.presets.values()):
            make_recipe(suite.spec.recipe, preset)


# TOML

EVERYTHING = """
suite = "digits-rib"
backbone = ["digits-vit", "digits-conv:pretrained=false"]
method = ["lwf:alpha=0.5", "ft"]
dataset = ["digits-r", "digits-a"]
seed = [0, 1]
preset = "paper"
limit = 5
store = "results"
data-root = "data"
no-plugin = ["timm"]
requires = ["rib-harness>=0.1"]
device = "cpu"
workers = 2
eval-batch-size = 16
save-every = 5.5
probe-every = 7
probe-images = 9
features = 11
tracker = "tensorboard"
data = ["digits-r"]
accept-license = ["digits-object"]
allow-mismatch = true
allow-full-disk = true
threads = 2
offline = true
sweep = "alpha=0,1"
search = ["lwf:temperature=1,2"]
trials = 4
rerun = "lwf"

[recipe]
lr = 0.5
batch-size = 8

[expect]
digits-r = 50
digits-a = "3/9"
"""


def test_every_setting_can_be_written_in_toml(toml: Any, tmp_path: Path) -> None:
    config = make_config({}, toml(EVERYTHING))
    assert config.model_fields_set == set(RunConfig.model_fields)
    assert config.backbone == ("digits-vit", "digits-conv:pretrained=false")
    assert (config.seed, config.limit, config.save_every) == ((0, 1), 5, 5.5)
    assert (config.data_root, config.eval_batch_size) == (Path("data"), 16)
    assert config.recipe == {"lr": 0.5, "batch_size": 8}
    assert config.expect == {"digits-r": "50", "digits-a": "3/9"}


def test_hyphens_and_underscores_are_the_same(toml: Any) -> None:
    underscores = EVERYTHING.replace("data-root", "data_root").replace("no-plugin", "no_plugin")
    underscores = underscores.replace("eval-batch-size", "eval_batch_size")
    for name in ("save-every", "batch-size", "probe-every", "probe-images"):
        underscores = underscores.replace(name, name.replace("-", "_"))
    assert make_config({}, toml(underscores)) == make_config({}, toml(EVERYTHING))


def test_settings_win_over_toml(toml: Any) -> None:
    values = {"method": ("ewc",), "seed": (7,), "limit": 2, "recipe": {"lr": "0.25"}}
    config = make_config(values, toml(EVERYTHING))
    assert (config.method, config.seed, config.limit) == (("ewc",), (7,), 2)
    assert config.dataset == ("digits-r", "digits-a")
    recipe = make_recipe({"lr": 1.0, "batch_size": 4, "epochs": 2}, config.recipe)
    assert (recipe.lr, recipe.batch_size, recipe.epochs) == (0.25, 8, 2)


@pytest.mark.parametrize("key", ["batch-size", "batch_size"])
@pytest.mark.parametrize("said", ["batch-size", "batch_size"])
def test_settings_of_the_recipe_win_however_they_are_spelled(
    key: str, said: str, toml: Any
) -> None:
    config = make_config({"recipe": {said: 32}}, toml(f"[recipe]\n{key} = 8\n"))
    assert config.recipe == {"batch_size": 32}


def test_one_value_stands_for_a_list_of_one(toml: Any) -> None:
    config = make_config({}, toml('method = "lwf"\nseed = 3\nrequires = "rib-harness"\n'))
    assert (config.method, config.seed, config.requires) == (("lwf",), (3,), ("rib-harness",))


def test_each_thing_is_done_once() -> None:
    config = make_config({"method": ["ft", "lwf", "ft"], "seed": [1, 0, 1]})
    assert (config.method, config.seed) == (("ft", "lwf"), (1, 0))


def test_mistakes_in_toml(toml: Any, tmp_path: Path) -> None:
    found = problems({"limit": 0}, toml('methd = "lwf"\nworkers = "all"\n'))
    assert len(found) == 3
    assert any(text.startswith("methd is no setting. Did you mean 'method'") for text in found)
    (text,) = problems({}, toml("method = lwf\n"))
    assert text.startswith(f"{tmp_path / 'run.toml'} is not valid TOML: Invalid value (at line 1")
    (tmp_path / "run.toml").write_bytes(b'method = "\xff"\n')
    (text,) = problems({}, tmp_path / "run.toml")
    assert text.startswith(f"{tmp_path / 'run.toml'} is not valid TOML: ")
    said = "The configuration file none.toml does not exist."
    Path("nones.toml").touch()
    (problem,) = problems({}, Path("none.toml"))
    assert problem.startswith(f"{said} Did you mean 'nones.toml'")
    assert problem.endswith("Name one that is there.")


def test_a_folder_is_no_configuration_file(tmp_path: Path) -> None:
    assert len(problems({}, tmp_path)) == 1


# What a store keeps


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"method": ["lwf:alpha=0.5", "wise-ft:base=(lwf:alpha=2,over=task)"], "seed": [0, 3]},
        {"recipe": {"lr": "0.01", "max-steps": 3}, "limit": 4, "no_plugin": ["timm"]},
        {"data_root": "~data", "store": "a/b", "device": "cpu", "save_every": 0},
    ],
)
def test_what_is_resolved_can_be_read_again(values: dict[str, Any], tmp_path: Path) -> None:
    resolved = make_config(values).resolved()
    text = tomli_w.dumps(resolved)
    assert tomllib.loads(text) == resolved
    file = tmp_path / "again.toml"
    file.write_text(text)
    again = make_config({}, file)
    assert again.resolved() == resolved
    assert make_config(values).model_copy(
        update={name: getattr(again, name) for name in ("store", "data_root")}
    ) == again  # fmt: skip


def test_everything_resolved_can_be_read_again(toml: Any, tmp_path: Path) -> None:
    resolved = make_config({}, toml(EVERYTHING)).resolved()
    # `rerun` is said of one command, not of the run that is kept.
    assert set(resolved) == {name.replace("_", "-") for name in RunConfig.model_fields} - {"rerun"}
    assert make_config({}, toml(tomli_w.dumps(resolved))).resolved() == resolved
    assert (resolved["store"], resolved["data-root"]) == (
        str(tmp_path / "results"),
        str(tmp_path / "data"),
    )


def test_what_is_empty_is_left_out() -> None:
    assert set(make_config({}).resolved()) == {
        "suite", "seed", "preset", "store", "save-every", "probe-images"
    }  # fmt: skip


def test_a_recipes_none_can_be_read_again(toml: Any) -> None:
    config = make_config({"recipe": {"max_steps": None}})
    again = make_config({}, toml(tomli_w.dumps(config.resolved())))
    suite = {"max_steps": 100}
    assert make_recipe(suite, again.recipe) == make_recipe(suite, config.recipe)
    assert make_recipe(suite, again.recipe).max_steps is None


# Documentation and requirements


@pytest.mark.parametrize("model", [Recipe, RunConfig])
def test_every_default_is_valid(model: type[BaseModel]) -> None:
    model.model_validate(model().model_dump())


def test_requirements() -> None:
    version = metadata.version("rib-harness")
    check_requirements(())
    check_requirements(("rib-harness", f"rib-harness=={version}", "rib_harness>=0.0.1,<99"))
    with pytest.raises(ConfigError) as caught:
        check_requirements(
            ("rib-harness>=99", "no-such-plugin>=1", "no requirement!", "rib-harness>=0.0.1")
        )
    assert caught.value.problems == [
        f"requires rib-harness>=99, but {version} is installed.",
        "requires no-such-plugin>=1, which is not installed: pip install 'no-such-plugin>=1'",
        "requires: expected a requirement such as 'rib-plugin-x>=0.3', got 'no requirement!'.",
    ]


def test_requirements_are_checked_before_any_work(tmp_path: Path) -> None:
    from rib_harness.runner import open_session

    config = make_config({"requires": "rib-harness>=99", "store": tmp_path / "s", "suite": "none"})
    with pytest.raises(ConfigError, match="requires rib-harness>=99"):
        open_session(config)
    assert not (tmp_path / "s").exists()


def test_an_object_where_a_reference_belongs_is_told_in_one_line() -> None:
    class Net:
        def __repr__(self) -> str:
            return "Net(\n  (0): Linear()\n)"

    with pytest.raises(ConfigError) as caught:
        make_config({"backbone": Net(), "method": 3.5, "seed": 2.5})
    backbone, method, seed = caught.value.problems
    assert "text" not in seed and seed.endswith("got 2.5.")
    assert backbone.startswith("backbone: expected text, or several, got an object of Net. A model")
    assert method.startswith("method: expected text, or several, got 3.5.")


# Values that could mean two things, or nothing


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"limit": True}, "limit"),
        ({"seed": True}, "seed"),
        ({"seed": [0, False]}, "seed"),
        ({"save_every": True}, "save_every"),
        ({"store": True}, "store"),
        ({"limit": np.True_}, "limit"),
        ({"recipe": {"epochs": True}}, "recipe.epochs"),
        ({"recipe": {"lr": True}}, "recipe.lr"),
        ({"recipe": {"clip_grad": np.True_}}, "recipe.clip_grad"),
    ],
)
def test_a_boolean_is_no_number(values: dict[str, Any], name: str) -> None:
    (text,) = problems(values)
    assert text.startswith(f"{name}: a number or a text is expected, not ")
    if name.startswith("recipe."):
        with pytest.raises(ConfigError, match="a number or a text is expected"):
            make_recipe(values["recipe"])


def test_no_seed_is_refused_from_toml_and_from_python(toml: Any) -> None:
    for found in (problems({}, toml("seed = []")), problems({"seed": ()})):
        assert found[0].startswith("seed: expected at least one seed")


def test_numbers_of_numpy_are_numbers() -> None:
    made = make_config(
        {"seed": np.arange(2), "limit": np.int32(4), "recipe": {"lr": np.float32(0.5)}}
    )
    assert (made.seed, made.limit, made.recipe) == ((0, 1), 4, {"lr": 0.5})
    assert make_config({"seed": np.int64(3)}).seed == (3,)
    assert type(make_config({"seed": [np.int64(3)]}).seed[0]) is int


def test_a_byte_order_mark_is_no_mistake_and_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xef\xbb\xbf" + b'method = "ft"\n')
    assert make_config({}, file).method == ("ft",)
    for encoding in ("utf-16", "utf-16-be"):
        mark = "\ufeff" if encoding.endswith("be") else ""
        file.write_bytes(f'{mark}method = "ft"\n'.encode(encoding))
        assert "is UTF-16, and TOML is UTF-8" in problems({}, file)[0]
    file.write_bytes('method = "é"'.encode("latin-1"))
    assert "it is no UTF-8" in problems({}, file)[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("[a" + ".a" * 5000 + "]", "is no setting"),
        ("limit = " + "9" * 5000, "more digits than a number may have"),
        ("limit = 0x" + "f" * 5000, "at most 9223372036854775807 is expected"),
        ("limit = 1" + "0" * 40, "at most 9223372036854775807 is expected"),
        ("seed = [0x" + "f" * 5000 + "]", "at most 9223372036854775807 is expected"),
        ("[recipe]\nepochs = '1" + "0" * 40 + "'", "at most 9223372036854775807 is expected"),
        ("[recipe]\nlr = 0x" + "f" * 5000, "at most 9223372036854775807 is expected"),
    ],
)
def test_what_is_too_deep_or_too_large_is_said(toml: Any, text: str, said: str) -> None:
    (found,) = problems({}, toml(text))
    assert said in found
    assert len(found) < 2000


def test_too_deep_or_too_large_from_python() -> None:
    deep: Any = "ft"
    for _ in range(5000):
        deep = [deep]
    assert problems({"method": deep}) == ["The settings are nested too deeply: give fewer levels."]
    assert "an object of int" in problems({"limit": 10**5000})[0]


@pytest.mark.parametrize("bracket", [("(", ")"), ("", "")])
def test_a_reference_in_thousands_of_others_is_refused(bracket: tuple[str, str]) -> None:
    opened, closed = bracket
    text = f"soup:members={opened}" * 3000 + "ft" + closed * 3000
    with pytest.raises(ConfigError, match="at most 64 others in one another"):
        load_catalog().bind("method", text)
    deep = "wise-ft:base=(" * 5 + "ft" + ")" * 5
    assert load_catalog().bind("method", deep).spec.name == "wise-ft"


def test_home_is_meant_by_a_tilde_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.toml").write_text('store = "~/in-toml"\n')
    made = make_config({}, Path("~/run.toml"))
    assert made.store == tmp_path / "in-toml"
    assert make_config({"data_root": "~/data"}).data_root == tmp_path / "data"
    assert make_config({"store": "~nobody-of-this-name/x"}).store == Path("~nobody-of-this-name/x")
    monkeypatch.setenv("RIB_CACHE", "~/cache")
    assert cache_dir("x") == tmp_path / "cache" / "x"
    bound = load_catalog().bind("backbone", "timm:test_vit,weights=~/w.pth")
    assert bound.options["weights"] == str(tmp_path / "w.pth")


def test_every_path_of_the_command_line_takes_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its type: a verb with a path of another type would not."""
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = 0
    verbs: list[Any] = [cli]
    while verbs:
        verb = verbs.pop()
        if isinstance(verb, click.Group):
            context = click.Context(verb)
            verbs += [verb.get_command(context, name) for name in verb.list_commands(context)]
        for parameter in verb.params:
            if isinstance(parameter.type, click.Path):
                paths += 1
                assert parameter.type.convert("~/x", parameter, None) == tmp_path / "x", verb.name
    assert paths >= 10
