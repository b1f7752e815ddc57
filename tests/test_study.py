"""Studies: the files that ship, what they expand to, and a small one from end to end."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rib_harness import Results, RibError
from rib_harness.arms import arms_of
from rib_harness.catalog import Catalog, load_catalog
from rib_harness.cli.study_ import command
from rib_harness.errors import ConfigError
from rib_harness.findings import find
from rib_harness.loading import HEAVY
from rib_harness.results import collect
from rib_harness.specs import BackboneSpec, MetricSpec, SuiteSpec
from rib_harness.store import Store
from rib_harness.study import (
    FIGURES,
    NAMES,
    Variation,
    find_study,
    load_studies,
    parse_study,
    plan_study,
    run_study,
    totals,
    variations,
)
from rib_harness.uncertainty import Uncertainty

SHIPPED = [(name, suite) for name, study in load_studies().items() for suite in study.suites]

#: Of every tiny study here: two sets, two images a class, one epoch.
TINY = """
title = "Tiny"
question = "Does it run?"
figure = "{figure}"
[suites.digits-rib]
backbone = "digits-conv"
method = {method}
dataset = ["digits-a", "digits-r"]
limit = 2
{more}
[suites.digits-rib.recipe]
epochs = 1
"""


def tiny(figure: str, more: str = "", method: str = '"ft"') -> str:
    return TINY.format(figure=figure, more=more, method=method)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tiny studies: what one has done, the next finds."""
    return tmp_path_factory.mktemp("studies") / "store"


# What ships


def test_the_seven_studies_of_the_protocol_ship_and_two_more() -> None:
    """Source: the seven studies that the benchmark's protocol lists, in its order."""
    import rib_harness

    folder = Path(rib_harness.__file__).parent / "studies"
    assert {path.stem for path in folder.glob("*.toml")} == set(NAMES)
    assert list(load_studies()) == list(NAMES)
    assert NAMES[7:] == ("equal-effort", "pretraining-steps")
    assert {study.figure for study in load_studies().values()} == set(FIGURES)


@pytest.mark.parametrize(("name", "suite"), SHIPPED)
def test_every_setting_names_something_that_exists(name: str, suite: str, catalog: Catalog) -> None:
    """Source: the catalog of the installed plugins, and the loop's own check of a recipe."""
    from rib_harness.config import make_recipe
    from rib_harness.engine.fit import check_recipe

    study = load_studies()[name]
    own, spec = study.on(suite), catalog.get("suite", suite).spec
    assert isinstance(spec, SuiteSpec)
    assert set(own.show) <= set(spec.members)
    for one in own.metrics:
        metric = catalog.get("metric", one).spec
        assert isinstance(metric, MetricSpec)
        assert metric.level == "distance"
    for part in variations(study, suite):
        for reference in part.config.backbone:
            bound = catalog.bind("backbone", reference)
            assert isinstance(bound.spec, BackboneSpec)
            assert bound.spec.facts(bound.tag).pretraining_images
            assert bound.spec.label_space == spec.label_space
        for reference in part.config.method:
            catalog.bind("method", reference, part.config.preset)
        check_recipe(make_recipe(spec.recipe, part.config.recipe))


@pytest.mark.parametrize("name", ["hyperparameters"])
@pytest.mark.parametrize("suite", ["imagenet-rib", "digits-rib"])
def test_the_base_recipe_is_a_point_of_each_panel(name: str, suite: str, catalog: Catalog) -> None:
    """Source: the suite's recipe."""
    from rib_harness.config import make_recipe

    spec = catalog.get("suite", suite).spec
    assert isinstance(spec, SuiteSpec)
    base = make_recipe(spec.recipe)
    parts = variations(load_studies()[name], suite)
    for panel in {part.panel for part in parts}:
        recipes = [make_recipe(spec.recipe, p.config.recipe) for p in parts if p.panel == panel]
        assert base in recipes
        assert len(set(recipes)) == len(recipes)


def test_the_paper_has_nine_methods_and_seven_pretrainings() -> None:
    """Source: the protocol's list of methods and its table of backbones."""
    (part,) = variations(load_studies()["methods"], "imagenet-rib")
    assert part.config.method == ("ft", "lp", "lp-ft", "visual-prompt", "lora", "ewc", "lwf",
                                  "wise-ft", "soup")  # fmt: skip
    assert len(part.config.backbone) == 7


# What a file says


def test_what_a_panel_varies_cannot_be_set() -> None:
    study = parse_study("mine", tiny("curves", "vary.lr = [{ lr = 0.01 }, { lr = 0.1 }]"))
    with pytest.raises(ConfigError, match=r"recipe\.lr is what the study mine varies"):
        variations(study, "digits-rib", {"recipe": {"lr": 0.5}})


def test_recipes_are_varied_one_at_a_time() -> None:
    study = parse_study(
        "mine",
        """
        title = "t"
        question = "q"
        figure = "curves"
        [suites.digits-rib]
        method = "ft"
        recipe = { momentum = 0.5, lr = 1.0 }
        probe-every = 3
        vary.lr = [{ lr = 0.1 }, { lr = 0.2, epochs = 3 }]
        vary.optimizer = [{ optimizer = "adamw", lr = 0.001 }]
        vary.both = [{ lr = 0.5, epochs = 2 }]
        """,
    )
    parts = variations(study, "digits-rib", {"limit": 3, "recipe": {"epochs": 9}})
    told = [(part.panel, part.x, part.config.recipe) for part in parts]
    assert told == [
        ("lr", 0.1, {"momentum": 0.5, "lr": 0.1, "epochs": 9}),
        ("lr", 0.2, {"momentum": 0.5, "lr": 0.2, "epochs": 3}),
        ("optimizer", "adamw", {"momentum": 0.5, "lr": 0.001, "epochs": 9, "optimizer": "adamw"}),
        ("both", "lr 0.5, epochs 2", {"momentum": 0.5, "lr": 0.5, "epochs": 2}),
    ]
    assert all(part.config.limit == 3 and part.config.probe_every == 3 for part in parts)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (tiny("courves"), "no figure is called 'courves'. Did you mean 'curves'?"),
        (tiny("dots", "bakcbone = 1"), "bakcbone is no setting. Did you mean 'backbone'"),
        (tiny("dots").replace("title", "titel"), "titel is no key of a study. Did you mean"),
        (tiny("dots").replace("epochs", "epoch"), "recipe.epoch is no setting. Did you mean"),
        (tiny("curves", "vary.lr = [{ lrr = 1 }]"), "vary.lr: recipe.lrr is no setting."),
        (tiny("curves", "vary.lr = [{ lr = -1 }]"), "vary.lr: recipe.lr: Input should be greater"),
        (tiny("curves", "vary.lr = []"), "vary.lr: List should have at least 1 item"),
        ("figure = 'dots'", "study mine: suites is missing."),
        ("figure = ", "The study mine is not valid TOML"),
    ],
)
def test_a_mistake_in_a_file_is_told(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_study("mine", text)
    assert said in str(error.value)


def test_all_mistakes_are_told_at_once() -> None:
    text = tiny("curves", "limt = 1\nvary.lr = [{ lrr = 1 }]\nvary.x = [{ epochs = -1 }]")
    with pytest.raises(ConfigError) as error:
        parse_study("mine", text)
    assert len(error.value.problems) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["radars"], "No study is called 'radars'. Did you mean 'radar'?"),
        (["./none.toml"], "The study none.toml does not exist"),
        (["radar", "--suite", "digit-rib"],
         "The study radar has no settings for the suite 'digit-rib'. Did you mean 'digits-rib'"),
        (["radar", "-d", "digits-a", "-d", "digits-v2"],
         "show: 'digits-r' is no fine-tuning set of this run. Did you mean"),
        (["mine.toml"], "metrics: 'mri' is no distance between datasets."),
        (["radar", "-b", "digits-vitt"], "No backbone is called 'digits-vitt'. Did you mean"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_any_work(arguments: list[str], said: str) -> None:
    Path("mine.toml").write_text(tiny("scatter", 'metrics = ["mri"]'))
    done = call("run", *arguments)
    assert isinstance(done.exception, RibError)
    assert said in str(done.exception)
    assert not Path("rib-store").exists()


# Listing


def test_list_tells_each_question() -> None:
    done = call("list", "--json")
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == list(NAMES)
    assert all(row["question"].endswith("?") and row["paper"] for row in rows)
    shown = call("list").stdout
    assert all(name in shown for name in NAMES)
    assert max(map(len, shown.splitlines())) <= 80


def test_listing_is_light() -> None:
    code = (
        "import json, sys\nfrom rib_harness.cli.study_ import command\n"
        "command(['list', '--json'], standalone_mode=False)\n"
        f"print('\\n' + json.dumps(sorted({set(HEAVY)!r} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


# From end to end


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(folder: Path, name: str) -> set[str]:
    endings = {".pdf", ".svg", ".png", ".csv", ".md"}
    assert {path.name for path in folder.iterdir()} == {name + ending for ending in endings}
    assert all(path.stat().st_size > 100 for path in folder.iterdir())
    return endings


def test_a_tiny_study_from_end_to_end(store: Path) -> None:
    """Source: the results in its store, averaged by the loop below."""
    Path("mine.toml").write_text(
        tiny("curves", "vary.lr = [{ lr = 0.001 }, { lr = 0.1 }]\nvary.epochs = [{ epochs = 2 }]")
    )
    arguments = ["run", "mine.toml", "--store", str(store), "--out", "out", "--seed", "3"]
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    written(Path("out"), "mine")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "Does it run?" in done.stdout
    by_recipe = {}
    for run in collect(Store(store)):
        post, pre = run.matrix.post, run.matrix.pre
        changes = [
            post[i][j].top1 - pre[j].top1
            for i, j in (("digits-a", "digits-r"), ("digits-r", "digits-a"))
        ]
        own = [post[i][i].top1 - pre[i].top1 for i in ("digits-a", "digits-r")]
        recipe = run.record["recipe"]
        by_recipe[recipe["lr"], recipe["epochs"]] = (sum(changes) / 2, sum(own) / 2)
        assert run.record["seed"] == 3
    points = read_csv(Path("out/mine.csv"))
    assert [(p["panel"], p["x"]) for p in points] == [
        ("lr", "0.001"), ("lr", "0.1"), ("epochs", "2")]  # fmt: skip
    for point, key in zip(points, [(0.001, 1), (0.1, 1), (0.01, 2)], strict=True):
        mri, gained = by_recipe[key]
        assert float(point["mri"]) == pytest.approx(mri)
        assert float(point["gain"]) == pytest.approx(gained)
        assert f"{mri:+.1f} [".replace("-", "−") in Path("out/mine.md").read_text()
    again = call(*arguments)
    assert "left: 0 updates, 0 images to score" in again.stderr


@pytest.mark.parametrize(
    ("figure", "more", "method", "rows"),
    [
        ("before-after", "", '"ft"', 1),
        ("radar", 'show = ["digits-r"]', '"ft"', 2),
        ("dots", "", '["ft", "lp"]', 2),
        ("learning", "probe-every = 1\nprobe-images = 8", '"ft"', None),
        ("scatter", 'features = 20\nmetrics = ["frechet", "mmd"]', '"ft"', 4),
    ],
)
def test_every_figure_has_its_numbers(
    figure: str, more: str, method: str, rows: int | None, store: Path
) -> None:
    """Source: the matrix in the store."""
    Path("mine.toml").write_text(tiny(figure, more, method))
    done = call("run", "./mine.toml", "--store", str(store), "--out", "out")
    assert done.exit_code == 0, done.output
    written(Path("out"), "mine")
    points = read_csv(Path("out/mine.csv"))
    assert rows is None or len(points) == rows
    (run,) = [r for r in collect(Store(store)) if r.record["seed"] == 0 and r.method == "ft"
              and ("probe_every" in r.record) == (figure == "learning")
              and ("features" in r.record) == (figure == "scatter")]  # fmt: skip
    pre, post = run.matrix.pre, run.matrix.post
    if figure == "before-after":
        assert float(points[0]["before"]) == pytest.approx(
            (pre["digits-a"].top1 + pre["digits-r"].top1) / 2
        )
        assert float(points[0]["mri"]) == pytest.approx(run.mri)
    elif figure == "radar":
        for point in points:
            assert float(point["after"]) == post["digits-r"][point["dataset"]].top1
            assert float(point["before"]) == pre[point["dataset"]].top1
    elif figure == "dots":
        assert {p["method"]: float(p["mri"]) for p in points}["ft"] == pytest.approx(run.mri)
    elif figure == "learning":
        assert points[0]["step"] == "0"
        assert {p["source"] for p in points} == {"digits-a", "digits-r"}
        rows_of = [
            json.loads(line)["probe"]
            for line in (Store(store).folder(run.record["finetune"]["digits-a"]) / "history.jsonl")
            .read_text()
            .splitlines()
            if "probe" in line
        ]
        mine = [p for p in points if p["source"] == "digits-a"]
        assert [float(p["own"]) for p in mine] == [row["digits-a"] for row in rows_of]
        assert [float(p["others"]) for p in mine] == [row["digits-r"] for row in rows_of]
    else:
        for point in points:
            cell = run.matrix.change(point["source"], point["dataset"])
            assert float(point["change"]) == pytest.approx(cell)
            assert float(point["distance"]) > -2


def test_options_win_over_the_study() -> None:
    study = load_studies()["pretraining"]
    (part,) = variations(study, "digits-rib", {"seed": (7,), "backbone": ("digits-conv",)})
    assert (part.config.seed, part.config.backbone) == ((7,), ("digits-conv",))
    assert part.config.method == ("ft",)


def test_a_dry_run_counts_each_step_once_and_writes_nothing(catalog: Catalog) -> None:
    """Source: one panel's plans; the other panel's are the same steps."""
    Path("mine.toml").write_text(
        tiny("curves", "vary.lr = [{ lr = 0.01 }, { lr = 0.1 }]\nvary.epochs = [{ epochs = 1 }]")
    )
    study = find_study("mine.toml")
    parts = variations(study, "digits-rib")
    one = totals(plan_study(study, "digits-rib", parts[:2], catalog))
    assert totals(plan_study(study, "digits-rib", parts, catalog)) == one
    # 3 of the untouched backbone, and for each lr 2 fine-tunings on 3 sets.
    assert one["steps"] == 3 + 2 * (2 + 6)
    done = call("run", "mine.toml", "--dry-run")
    assert done.exit_code == 0
    assert f"3 configuration(s), {one['steps']} steps, 0 done already" in done.stderr
    assert not Path("rib-store").exists()
    assert not Path("studies").exists()


# What goes wrong


def test_one_that_fails_does_not_lose_the_others(store: Path) -> None:
    Path("mine.toml").write_text(tiny("curves", "vary.lr = [{ lr = 1e30 }, { lr = 0.001 }]"))
    done = call("run", "mine.toml", "--store", str(store), "--out", "out", "--seed", "3")
    assert done.exit_code == 1
    said = str(done.exception)
    assert "1 configuration(s) are not whole" in said
    assert "lr 1e+30: " in said
    points = read_csv(Path("out/mine.csv"))
    assert [(p["x"], bool(p["mri"])) for p in points] == [("1e+30", False), ("0.001", True)]
    assert "INCOMPLETE" in done.stdout
    written(Path("out"), "mine")


def test_a_known_answer_that_is_missed_is_told_at_the_end() -> None:
    Path("mine.toml").write_text(tiny("before-after", "expect = { digits-test = 1 }"))
    done = call("run", "mine.toml", "--out", "out")
    assert done.exit_code == 1
    assert "does not score what it is known to" in str(done.exception)
    assert "INCOMPLETE" in Path("out/mine.md").read_text()


def test_a_study_that_is_stopped_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from rib_harness import runner

    def stop(session: Any) -> Results:
        raise KeyboardInterrupt

    Path("mine.toml").write_text(tiny("dots"))
    monkeypatch.setattr(runner, "execute", stop)
    done = call("run", "mine.toml", "--out", "out")
    assert done.exit_code == 130
    assert "the same command goes on from here" in done.stderr
    assert not Path("out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_study_makes_its_files(
    name: str, catalog: Catalog, store: Path, tmp_path: Path
) -> None:
    """Source: mRI as the results give it."""
    given: Mapping[str, Any] = {
        "dataset": ("digits-a", "digits-r", "digits-sketch"),
        "limit": 1, "store": store, "workers": 1, "seed": (0,), "recipe": {"max_steps": 6},
    }  # fmt: skip
    if name == "distance":
        given = {**given, "features": 30, "limit": 6}
    if name == "equal-effort":
        given = {**given, "backbone": ("digits-conv",), "method": ("ft", "wise-ft"), "trials": 3}
    study = load_studies()[name]
    parts = variations(study, "digits-rib", given)
    ran, failures = run_study(parts, catalog)
    assert failures == {}
    findings = find(study, "digits-rib", ran, Uncertainty(Store(store)), catalog)
    findings.write(tmp_path)
    written(tmp_path, name)
    assert findings.answers
    for point in findings.points:  # the best has no difference from itself
        assert all(v is not None for k, v in point.items() if not k.startswith("minus_best"))
    if name == "equal-effort":
        trials = [arm.mri for arm in arms_of(ran[0].results or ()) if arm.record.get("trial_of")]
        assert sorted(p["mri"] for p in findings.points) == pytest.approx(sorted(trials))
    elif "mri" in findings.points[0]:
        assert [p["mri"] for p in findings.points] == pytest.approx(mris(ran))


def mris(parts: list[Variation]) -> list[float]:
    return [arm.mri for part in parts if part.results for arm in arms_of(part.results)]
