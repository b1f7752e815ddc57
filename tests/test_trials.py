"""Methods at equal effort: what is drawn and shared, the edge of gain and mRI, and what is said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner, Result

import rib_harness
from rib_harness import Arm, Knob, MethodSpec, RibError, Task
from rib_harness.arms import arms_of
from rib_harness.catalog import Catalog, load_catalog
from rib_harness.cli import cli
from rib_harness.composition import _drawn, expand
from rib_harness.config import Recipe, make_config
from rib_harness.frontier import Frontier, Trial, at_equal_gain, frontiers
from rib_harness.plan import Plan, make_plan
from rib_harness.progress import Silence
from rib_harness.runner import execute, open_session
from rib_harness.store import Store
from rib_harness.testing import catalog_with

SMALL: dict[str, Any] = {
    "backbone": "digits-conv",
    "dataset": ["digits-a", "digits-r"],
    "limit": 5,
    "recipe": {"max_steps": 4},
}


def plan_of(method: str | list[str], catalog: Catalog | None = None, **changes: Any) -> Plan:
    config = make_config({**SMALL, "method": method, "store": Path("store"), **changes})
    return make_plan(config, catalog or load_catalog(), Store(config.store))


def problem(method: str | list[str], catalog: Catalog | None = None, **changes: Any) -> str:
    with pytest.raises(RibError) as caught:
        plan_of(method, catalog, **changes)
    return str(caught.value)


def labels(method: str | list[str], trials: int, **recipe: Any) -> list[str]:
    methods = [method] if isinstance(method, str) else method
    found = expand(load_catalog(), methods, "default", Recipe(**recipe), trials=trials)
    return [entry.method.label for entry in found]


class Never:
    """A method that is planned only."""

    def __init__(self, strength: float = 1.0, kind: str = "a"):
        self.strength, self.kind = strength, kind

    def finetune(self, task: Task) -> Any:
        raise AssertionError


def never(**rest: Any) -> Catalog:
    return catalog_with((MethodSpec(name="never", target="", summary="", **rest), Never))


# A recipe of one's own


def test_a_value_of_the_recipe_in_a_reference_is_that_of_the_run() -> None:
    """Source: the keys of the same command with `--set`."""
    alone = {step.key for step in plan_of("ft:recipe.lr=0.003").steps}
    given = {step.key for step in plan_of("ft", recipe={"max_steps": 4, "lr": 0.003}).steps}
    assert alone == given
    (record, other) = plan_of(["ft", "lwf:recipe.batch-size=8,alpha=2"]).records
    assert (record["recipe"]["batch_size"], other["recipe"]["batch_size"]) == (32, 8)
    assert (record["method"], other["method"]) == ("ft", "lwf:alpha=2.0,recipe.batch_size=8")


def test_what_a_method_starts_from_has_its_recipe_and_may_have_its_own() -> None:
    steps = {
        step.method.label: step.recipe.lr
        for step in plan_of(
            ["wise-ft:recipe.lr=0.5", "soup:members=(ft:recipe.lr=0.25)+lwf,recipe.lr=0.125"]
        ).steps
        if step.kind == "finetune" and step.method is not None and step.recipe is not None
    }
    assert steps["ft"] == 0.5 and steps["ft:recipe.lr=0.25"] == 0.25 and steps["lwf"] == 0.125


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("ft:recipe.momentm=0.1", "Did you mean 'recipe.momentum'"),
        ("ft:recipe.lr=fast", "recipe.lr: Input should be a valid number"),
        ("ft:recipe.lr=-1", "recipe.lr: Input should be greater than 0, got '-1'"),
        ("visual-prompt:recipe.lr=1", "recipe.lr changes nothing, the method sets it itself: set "
                                      "its option lr."),
        ("wise-ft:base=visual-prompt", "not mergeable"),
        ("soup:members=pretrained,recipe.lr=1", "recipe.lr changes nothing"),
        ("soup:members=(ft:recipe.keep=0.5)+lwf", "ft:recipe.keep=0.5 sets recipe.keep, which is "
                                                  "the same for all"),
        ("lp-ft:second=(ft:recipe.lr=1)", "give the values to lp-ft"),
    ],
)  # fmt: skip
def test_a_wrong_value_of_the_recipe_is_refused_when_planning(method: str, said: str) -> None:
    assert said in problem(method)


def test_a_search_tries_values_of_the_recipe() -> None:
    plan = plan_of(["ft", "lwf"], search="ft:recipe.lr=0.01,0.001")
    made = {step.method.label for step in plan.steps if step.method is not None}
    assert {"ft:recipe.lr=0.001", "search(ft,recipe.lr=0.01|0.001)", "lwf"} <= made
    assert "recipe.lr changes nothing" in problem("visual-prompt", search="recipe.lr=1,2")


# What is drawn


def test_the_first_trial_is_the_method_itself_and_more_trials_begin_with_the_same() -> None:
    few, many = labels("lwf", 3), labels("lwf", 8)
    assert few[0] == "trials(lwf,3)" and many[0] == "trials(lwf,8)"
    assert few[1] == "lwf" and many[1:4] == few[1:]
    assert len(set(many)) == 9


def test_methods_draw_the_same_rates_and_so_share_what_they_start_from() -> None:
    plan = plan_of(["ft", "wise-ft"], trials=5)
    made = [s.method.label for s in plan.steps if s.kind == "finetune" and s.method is not None]
    trained = {label for label in made if label.startswith("ft")}
    assert len(trained) == 5  # of both methods together
    apart = plan_of("ft", trials=5)
    own = {s.key for s in apart.steps if s.method is not None and s.method.label in trained}
    assert own <= {s.key for s in plan.steps}


def test_what_is_drawn_lies_in_its_range_evenly() -> None:
    """Source: bounds of the uniform distribution: a KS distance above 1.95/√n has p < 0.001."""
    knobs = (Knob("strength", 0.1, 1000.0), Knob("kind", values=("a", "b")))
    drawn = [[_drawn(knob, k, Recipe()) for k in range(400)] for knob in knobs]
    shares = np.sort([np.log10(float(value) / 0.1) / 4 for value in drawn[0]])
    assert shares[0] >= 0 and shares[-1] <= 1
    ranks = np.arange(1, len(shares) + 1) / len(shares)
    assert np.abs(shares - ranks).max() < 1.95 / len(shares) ** 0.5
    assert abs(drawn[1].count("a") / 400 - 0.5) < 3.3 * 0.5 / 400**0.5
    linear = expand(never(knobs=(Knob("strength", 2.0, 3.0, log=False),)), ["never"], "default",
                    Recipe(), trials=50)  # fmt: skip
    assert all(2 <= entry.method.options["strength"] <= 3 for entry in linear[2:])


def test_a_rate_is_a_multiple_of_the_runs_own() -> None:
    """Source: the same draws for a run with a hundred times the rate."""
    slow, fast = (
        [
            entry.method.recipe["lr"]
            for entry in expand(load_catalog(), ["ft"], "default", Recipe(lr=lr), trials=20)[2:]
        ]
        for lr in (0.001, 0.1)
    )
    assert fast == pytest.approx([100 * lr for lr in slow])
    assert min(slow) >= 0.00003 and max(slow) <= 0.003 and max(slow) > 30 * min(slow)


@pytest.mark.parametrize("alpha", [7.0, 1.0])  # 1 is the default, and given all the same
def test_what_was_given_is_not_drawn(alpha: float) -> None:
    text = f"lwf:alpha={alpha},recipe.lr=0.5"
    found = expand(load_catalog(), [text], "default", Recipe(), trials=4)
    for entry in found[1:]:
        assert entry.method.options["alpha"] == alpha and entry.method.recipe == {"lr": 0.5}
    swept = expand(load_catalog(), ["lwf"], "default", Recipe(), sweep=["alpha=1,7"], trials=4)
    assert {e.method.options["alpha"] for e in swept if e.trial_of} == {1, 7}


def test_what_a_preset_sets_is_where_trials_begin_and_is_drawn() -> None:
    found = expand(load_catalog(), ["ewc"], "paper", Recipe(), trials=4)[1:]
    values = [entry.method.options["lambda"] for entry in found]
    assert values[0] == 2 and len(set(values)) == 4
    assert {entry.method.options["fisher"] for entry in found} == {"identity"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "best-of:members=ft+lwf"}, "best-of:members=ft+lwf declares no knobs"),
        ({"method": "ft:recipe.lr=0.1"}, "has a value for each of its knobs"),
        ({"method": "ft", "search": "recipe.lr=1,2"}, "Give --search or --trials"),
        ({"method": "ft", "trials": 1}, "trials: Input should be greater than or equal to 2"),
        ({"method": "ft", "recipe": {"held_out": 0}}, "recipe.held_out=0 leaves nothing to choose"),
    ],
)
def test_trials_that_cannot_be_are_refused_when_planning(given: dict[str, Any], said: str) -> None:
    assert said in problem(**{"trials": 3, **given})


def test_a_search_needs_something_held_out_too() -> None:
    assert "leaves nothing" in problem("lwf", search="alpha=1,2", recipe={"held_out": 0})


# The edge, and mRI at equal gain


def frontier_of(*points: tuple[float, float], name: str = "a") -> Frontier:
    class Known:
        """An arm of which only mRI is asked."""

        def __init__(self, mri: float):
            self.mri = mri

    return Frontier(
        f"trials({name},{len(points)})",
        tuple(Trial(cast(Arm, Known(mri)), gain, mri) for gain, mri in points),
        len(points),
    )


def edges(found: Frontier) -> list[tuple[float, float]]:
    return [(one.gain, one.mri) for one in found.edge]


def test_the_edge_is_what_no_other_trial_beats() -> None:
    """Source: by hand."""
    found = frontier_of((10, -5), (20, -9), (15, -10), (12, -5), (5, -1), (20, -12))
    assert edges(found) == [(5, -1), (12, -5), (20, -9)]
    assert found.name == "a"
    assert frontier_of((1, 1), name="lora:rank=4,alpha=1").name == "lora:rank=4,alpha=1"


def test_between_two_trials_mri_is_on_a_line() -> None:
    """Source: numpy's interp on the edge."""
    found = frontier_of((5, -1), (12, -5), (20, -9))
    for gain in (5, 6, 11.5, 12, 17, 20):
        assert found.mri_at(gain) == pytest.approx(np.interp(gain, [5, 12, 20], [-1, -5, -9]))
    assert found.mri_at(2) == -1  # more gain than is asked for
    assert found.at(20.001) is None and found.mri_at(20.001) is None
    assert frontier_of().at(0) is None


def test_one_method_is_dominated_where_another_has_more_everywhere() -> None:
    """Source: by hand."""
    high, low = frontier_of((5, 0), (20, -5)), frontier_of((6, -2), (18, -6))
    assert low.dominated_by(high) and not high.dominated_by(low)
    longer = frontier_of((6, -2), (25, -20))
    assert not longer.dominated_by(high) and not high.dominated_by(longer)
    assert not high.dominated_by(high) and not high.dominated_by(frontier_of())


# Whole runs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trials") / "store"
    config = {**SMALL, "recipe": {"epochs": 2}, "limit": 8, "store": path}
    results = rib_harness.run(method=["ft", "wise-ft"], trials=3, seed=[0, 1, 2], **config)
    assert results.complete
    return path


def command(store: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--store", str(store)])


def test_what_is_chosen_has_the_highest_accuracy_on_held_out_images(store: Path) -> None:
    """Source: the gains of the trials, which are read from their scores."""
    results = rib_harness.Results(rib_harness.results.collect(Store(store)))
    for run in results:
        if not run.method.startswith("trials("):
            continue
        seed = run.record["seed"]
        trials = [r for r in results if r.trial_of == run.method and r.record["seed"] == seed]
        assert len(trials) == 3
        for source in run.matrix.sources:
            gains = {r.method: r.matrix.gain(source) for r in trials}
            tried = run.facts[source]["tried"]
            best = max(one["accuracy"] for one in tried.values())
            assert run.matrix.gain(source) == pytest.approx(max(gains.values()))
            assert len(tried) == 3 and tried[run.facts[source]["chosen"]]["accuracy"] == best


def test_tables_show_what_was_chosen_and_all_of_it_where_that_is_asked(store: Path) -> None:
    said = command(store, "results").stdout
    assert "trials(wise-ft,3)" in said and not re.search("^ (wise-)?ft:", said, re.MULTILINE)
    assert "digits-conv · seeds 0, 1, 2 · sgd, lr 0.01" in said and "at a gain of" in said
    assert "wise-ft:alpha" in command(store, "results", "--show-trials").stdout
    rows = json.loads(command(store, "results", "--format", "json").stdout)
    assert len(rows) == 2 * 3 * (1 + 3)
    assert {row["trial_of"] for row in rows} == {None, "trials(ft,3)", "trials(wise-ft,3)"}
    runs = command(store, "results", "--format", "md").stdout.count("**digits-rib**")
    assert runs == 2 * 3 and "alpha=" not in command(store, "results", "--format", "latex").stdout


def test_mri_at_equal_gain_is_what_the_trials_say(store: Path) -> None:
    """Source: numpy's interp and scipy's t interval, over the trials' numbers by seed."""
    from scipy import stats

    runs = rib_harness.results.collect(Store(store))
    (found,) = frontiers(arms_of(runs))
    (rows,) = at_equal_gain([found], runs.uncertainty)
    assert [row.frontier.name for row in rows] == ["wise-ft", "ft"] or [
        row.frontier.name for row in rows
    ] == ["ft", "wise-ft"]
    gain = min(max(one.gain for one in f.trials) for f in found)
    for row in rows:
        assert row.gain == pytest.approx(gain)
        x, y = zip(*edges(row.frontier), strict=True)
        assert row.mri is not None
        assert row.mri.estimate == pytest.approx(np.interp(gain, x, y), abs=1e-9)
    best, other = rows
    assert best.difference is None and other.difference is not None and best.mri and other.mri
    assert other.difference.estimate == pytest.approx(other.mri.estimate - best.mri.estimate)
    # Over seeds alone, the interval of the paired differences is the t interval; images widen it.
    parts = [(row.frontier.at(gain) or [], sign) for row, sign in ((other, 1), (best, -1))]
    by_seed = [
        sum(sign * share * arm.matrices[k].mri for pairs, sign in parts for arm, share in pairs)
        for k in range(3)
    ]
    half = float(stats.sem(by_seed) * stats.t.ppf(0.975, 2))
    assert other.difference.high - other.difference.low > 1.9 * half
    assert other.difference.covers == "images and seeds"


def test_methods_are_compared_at_the_gain_that_is_asked_for(store: Path) -> None:
    rows = json.loads(command(store, "compare", "--at-equal-gain", "--format", "json").stdout)
    assert len(rows) == 6 and {row["method"] for row in rows} == {"ft", "wise-ft"}
    assert all(row["mri_at_equal_gain"] is not None for row in rows)
    far = command(store, "compare", "--at-equal-gain", "--gain", "99").stdout
    assert far.count("not reached") == 2
    one = command(store, "compare", "ft", "--at-equal-gain", "--format", "csv").stdout
    assert "wise-ft" not in one and one.count("\n") == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "lwf", "--at-equal-gain"], "no trials of 'lwf'"),
        (["compare", "wise-tf", "--at-equal-gain"], "Did you mean 'wise-ft'?"),
        (["compare", "ft", "wise-ft", "--gain", "3"], "--gain needs --at-equal-gain"),
        (["compare", "--at-equal-gain", "--format", "md"], "the formats table, json and csv"),
        # One setting of those that were tried is not what a method's name means.
        (["compare", "ft", "wise-ft"], "has no method, backbone or run of that name"),
    ],
)
def test_what_cannot_be_compared_is_said(store: Path, arguments: Sequence[str], said: str) -> None:
    done = command(store, *arguments)
    assert done.exit_code != 0 and said in f"{done.output} {done.exception}"


def test_what_was_chosen_is_compared_as_any_method(store: Path) -> None:
    done = command(store, "compare", "trials(ft,3)", "trials(wise-ft,3)")
    assert done.exit_code == 0 and "B: digits-rib · digits-conv · trials(wise-ft,3)" in done.output


def test_the_page_shows_trials_at_equal_gain_only(store: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = command(store, "report", "--out", str(page))
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    assert "Methods at equal effort: digits-conv" in text and "trials(wise-ft,3)" in text
    assert '<th scope="row">ft:recipe' not in text


def test_a_trial_that_diverges_is_not_chosen_and_is_no_failure(tmp_path: Path) -> None:
    class Wild:
        """Diverges where it is told to."""

        def __init__(self, rate: float = 1e-3):
            self.rate = rate

        def finetune(self, task: Task) -> rib_harness.Classifier:
            return task.fit(task.pretrained.copy(), lr=self.rate)

    spec = MethodSpec(name="wild", target="", summary="", knobs=(Knob("rate", values=(1e30,)),))
    config = make_config({**SMALL, "method": "wild", "trials": 3, "store": tmp_path / "s"})
    said: list[str] = []

    class Heard(Silence):
        """Keeps what is said."""

        def say(self, text: str) -> None:
            said.append(text)

    results = execute(open_session(config, Heard(), catalog_with((spec, Wild))))
    assert results.complete and [run.complete for run in results] == [True, True, False]
    (chose,) = [run for run in results if not run.trial_of]
    assert chose.facts["digits-a"]["chosen"] == "testing/wild"
    assert sum("It is a trial, and is not chosen." in text for text in said) == 2
    ((found,),) = frontiers(arms_of(results))
    assert (len(found.trials), found.drawn) == (1, 2)
    for verb in (("results",), ("report", "--out", str(tmp_path / "page.html"))):
        done = command(tmp_path / "s", *verb)
        assert done.exit_code == 0, done.output


def test_only_trials_of_the_same_images_recipe_and_seeds_are_compared(tmp_path: Path) -> None:
    """Two methods on one store: other limits, recipes and seeds are apart, more trials are not."""
    config = {**SMALL, "store": tmp_path / "s", "recipe": {"epochs": 0}, "limit": 4}
    rib_harness.run(method="ft", trials=2, **config)
    rib_harness.run(method="wise-ft", trials=3, **config)
    rib_harness.run(method="ft", trials=3, **config)
    rib_harness.run(method="ft", trials=3, **{**config, "limit": 5})
    rib_harness.run(method="ft", trials=3, **{**config, "recipe": {"epochs": 0, "lr": 1.0}})
    rib_harness.run(method="lp-ft", trials=3, seed=1, **config)
    groups = frontiers(arms_of(rib_harness.results.collect(Store(tmp_path / "s"))))
    names = [[(one.name, one.drawn) for one in group] for group in groups]
    assert names == [[("ft", 3), ("wise-ft", 3)], [("ft", 3)], [("ft", 3)], [("lp-ft", 3)]]
    assert len({one.setting for group in groups for one in group}) == 4
    shown = command(tmp_path / "s", "results").stdout
    assert shown.count("at a gain of") == 4
    one = tmp_path / "one.html"
    # A store of which only trials are wanted has nothing to show, and says so.
    done = command(tmp_path / "s", "report", "--method", "ft", "--out", str(one))
    assert isinstance(done.exception, RibError) and not one.exists()


def test_nothing_is_left_to_do_when_trials_are_asked_for_again(store: Path) -> None:
    config = {**SMALL, "recipe": {"epochs": 2}, "limit": 8}
    again: Callable[..., Plan] = plan_of
    assert not again(
        ["ft", "wise-ft"], trials=3, seed=[0, 1, 2], **{**config, "store": store}
    ).missing
