"""What methods are made of, what held-out images choose, and what is refused when planning."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rib_harness import (
    ConfigError,
    MethodSpec,
    PartialFailureError,
    Results,
    RibError,
    Task,
    cli,
)
from rib_harness.catalog import Catalog, load_catalog
from rib_harness.composition import Values
from rib_harness.config import make_config
from rib_harness.engine import evaluate
from rib_harness.plan import Plan, Step, make_plan
from rib_harness.pruning import held_out
from rib_harness.runner import _Walk, execute, open_session
from rib_harness.scores import Scores
from rib_harness.store import Store
from rib_harness.testing import catalog_with

SMALL: dict[str, Any] = {
    "backbone": "digits-conv",
    "dataset": ["digits-v2", "digits-r"],
    "limit": 2,
    "recipe": {"max_steps": 2},
    "store": Path("store"),
}
OPTIONS = ["-d", "digits-v2", "-d", "digits-r", "--limit", "2", "--store", "store"]


def plan_of(method: str | list[str], catalog: Catalog | None = None, **changes: Any) -> Plan:
    config = make_config({**SMALL, "method": method, **changes})
    return make_plan(config, catalog or load_catalog(), Store(config.store))


def run_of(
    method: str | list[str], catalog: Catalog | None = None, **changes: Any
) -> tuple[Plan, Results]:
    session = open_session(make_config({**SMALL, "method": method, **changes}), catalog=catalog)
    return session.plan, execute(session)


def tuned(plan: Plan, dataset: str = "digits-v2") -> dict[str, Step]:
    """Label@seed of the method → its step on one dataset."""
    steps = [s for s in plan.steps if s.kind == "finetune" and s.dataset.name == dataset]
    named = {f"{s.method.label}@{s.seed}": s for s in steps if s.method is not None}
    assert len(named) == len(steps)
    return named


def facts(step: Step) -> Mapping[str, Any]:
    done = Store("store").done(step.key)
    assert done is not None
    found: Mapping[str, Any] = done["facts"]
    return found


def problem(method: str | list[str], **changes: Any) -> str:
    with pytest.raises(RibError) as caught:
        plan_of(method, **changes)
    assert not Path("store").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "made"),
    [
        ("wise-ft:base=lwf", ["lwf@0", "wise-ft:base=lwf@0"]),
        ("soup:members=pretrained+ft+ewc+lwf", ["ft@0", "ewc@0", "lwf@0", "soup@0"]),
        ("lp-ft:second=lora", ["lp@0", "lp-ft:second=lora@0"]),
        ("model-stock:members=ft+ft@1", ["ft@0", "ft@100000", "model-stock@0"]),
        ("soup:members=ft+ft", ["ft@0", "soup:members=ft+ft@0"]),
    ],
)
def test_every_member_is_made_once_and_shared_with_the_same_method_asked_for_on_its_own(
    method: str, made: list[str]
) -> None:
    plan = plan_of(method)
    steps = tuned(plan)
    assert list(steps) == made  # what a step needs comes before it
    result = steps[made[-1]]
    assert {s.key for s in result.needs.values()} <= {steps[name].key for name in made[:-1]}
    for name in made[:-1]:
        label, _, seed = name.rpartition("@")
        alone = tuned(plan_of(label, seed=int(seed)))
        assert {one: step.key for one, step in alone.items()} == {name: steps[name].key}
    _, results = run_of([method, made[0].rpartition("@")[0]])
    assert [result["complete"] for result in results.to_json()] == [True, True]
    assert not plan_of(method).missing


def test_a_member_with_another_seed_is_the_method_run_with_that_seed() -> None:
    run_of("model-stock:members=ft+ft@1")
    own, _ = run_of("ft", seed=100_000, store=Path("other"))
    step = tuned(own)["ft@100000"]
    files = [Store(name).folder(step.key) / "model.safetensors" for name in ("store", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()


class Never:
    """A method that is planned only."""

    def finetune(self, task: Task) -> Any:
        raise AssertionError


def cyclic() -> Catalog:
    def spec(name: str, **made_of: tuple[str, ...]) -> tuple[MethodSpec, type]:
        return MethodSpec(name=name, target="", summary="", **made_of), Never  # type: ignore[arg-type]

    return catalog_with(
        spec("itself", needs=("itself@1",)),
        spec("called", calls=("lp-ft:second=called",)),
        spec("averaged", needs=("wise-ft:base=averaged",)),
    )


@pytest.mark.parametrize(
    ("method", "chain"),
    [
        ("itself", "testing/itself → testing/itself"),
        ("called", "testing/called → cl-methods/lp-ft:second=called → testing/called"),
        ("lp-ft:second=called", "called → cl-methods/lp-ft:second=called"),
        ("wise-ft:base=averaged", "averaged → cl-methods/wise-ft:base=averaged"),
        ("best-of:members=ft+averaged", "cl-methods/wise-ft:base=averaged → testing/averaged"),
    ],
)
def test_a_cycle_is_refused_with_the_way_round(method: str, chain: str) -> None:
    with pytest.raises(ConfigError, match="A cycle of methods: .*" + chain):
        plan_of(method, cyclic())


def test_a_member_that_is_missing_or_unknown_is_refused() -> None:
    for text in ("ft+", "", "+ft", "ft++lwf"):
        assert f"expected methods joined by +, got {text!r}" in problem(f"soup:members={text}")
    assert "No method is called 'lwff'. Did you mean 'lwf'?" in problem("soup:members=ft+lwff")
    assert "No method is called 'ewwc'. Did you mean 'ewc'?" in problem("wise-ft:base=ewwc")
    assert "has no option 'lamda'. Did you mean 'lambda'" in problem("wise-ft:base=(ewc:lamda=1)")
    assert "cannot run wise-ft from another start" in problem("lp-ft:second=wise-ft")
    assert "cannot run lp-ft from another start" in problem("lp-ft:second=lp-ft")


FIXED_SHAPE = [
    "wise-ft:base={}", "soup:members=ft+{}", "greedy-soup:members={}+ft", "tpgm:base={}",
    "model-stock:members=ft+{}", "lp-ft:second={}", "lp-ft:lp={}",
    "soup:members=ft+(best-of:members=ft+{})", "wise-ft:base=(best-of:members={})",
]  # fmt: skip


@pytest.mark.parametrize("member", ["vpt", "adapter", "visual-prompt", "nmtune", "moa"])
def test_a_member_of_another_architecture_is_refused_where_weights_are_averaged(
    member: str,
) -> None:
    for method in FIXED_SHAPE:
        said = problem(method.format(member), backbone="digits-vit")
        assert "it is not mergeable" in said and member in said
    assert plan_of(f"best-of:members={member}+ft", backbone="digits-vit").steps


@pytest.mark.parametrize(
    ("method", "backbone", "said"),
    [
        ("soup:members=ft+", "digits-conv", "joined by +"),
        ("soup:members=ft+lwff", "digits-conv", "Did you mean 'lwf'"),
        ("wise-ft:base=vpt", "digits-vit", "not mergeable"),
        ("ewc:data=digits-r", "digits-conv", "scores this run"),
        ("si", "digits-conv", "no training trajectory"),
        ("vpt", "digits-conv", "digits-vit"),
    ],
)
def test_the_command_line_says_one_thing_and_exits_with_1(
    method: str, backbone: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._code(["plan", "-b", backbone, "-m", method, *OPTIONS]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert said in err.replace("\n", " ")
    assert err.count("Error") == 1 and "Traceback" not in err


def test_a_choice_of_another_architecture_is_loaded_as_what_was_chosen() -> None:
    choice = "best-of:members=(best-of:members=vpt+(vpt:tokens=4))+ft"
    recipe = {"max_steps": 2, "held_out": 0.2}
    plan, _ = run_of([choice, "vpt", "vpt:tokens=4", "ft"], backbone="digits-vit", recipe=recipe)
    outer = next(s for s in tuned(plan).values() if s.method and s.method.id.endswith("+ft"))
    chosen = outer
    while chosen.needs:
        assert facts(chosen)["same_as"] == facts(chosen)["chosen"]
        chosen = chosen.needs[facts(chosen)["same_as"]]
    for name in ("digits-v2", "digits-r", "digits-test"):
        one, two = (
            Scores.read(Store("store").folder(s.key) / "scores.parquet").column("nll")
            for model in (outer, chosen)
            for s in plan.steps
            if s.model and s.model.key == model.key and s.dataset.name == name
        )
        assert np.array_equal(one, two)
    inner = next(s for r, s in outer.needs.items() if r.startswith("best-of"))
    session = open_session(
        make_config({**SMALL, "method": choice, "backbone": "digits-vit", "recipe": recipe})
    )
    model = _Walk(session).load(inner, inner.backbone)  # of an architecture that has prompts
    assert any("prompts" in parameter for parameter, _ in model.named_parameters())


@pytest.mark.parametrize("method", ["ewc:data={}", "mas:data={}", "si:old={}"])
def test_old_data_is_read_under_its_fingerprint_and_never_that_which_scores(method: str) -> None:
    for scoring in ("digits-v2", "digits-r", "digits-test", "digits/digits-r"):
        assert f"may not read {scoring}: it scores this run" in problem(method.format(scoring))
        nested = f"wise-ft:base=({method.format(scoring)})"
        assert f"may not read {scoring}" in problem(nested)
    said = problem(method.format("digits-trian"))
    assert "No dataset is called 'digits-trian'. Did you mean 'digits-train'" in said
    assert "over imagenet-1k" in problem(method.format("imagenet-v2"))
    assert "reads data, of its own" in problem(f"lp-ft:second=({method.format('digits-train')})")
    plan, _ = run_of(method.format("digits-train"), limit=1)
    (step,) = tuned(plan).values()
    images = load_catalog().bind("dataset", "digits-train").build().open(None).limited(1)
    assert step.inputs["reads"]["digits-train"]["fingerprint"] == images.fingerprint
    assert step.inputs["reads"]["digits-train"]["limit"] == 1
    assert not plan_of(method.format("digits-train"), limit=1).missing


def test_si_without_old_data_is_refused_with_the_reason() -> None:
    for method in ("si", "soup:members=ft+si", "wise-ft:base=si"):
        said = problem(method)
        assert "needs the option 'old'" in said and "penalty would be 0" in said


class Spy:
    """Scales the pretrained head, trains nothing, and keeps what it was given."""

    seen: list[tuple[float, Task, float]] = []  # noqa: RUF012

    def __init__(self, scale: float = 1.0, other: int = 0, data: str | None = None):
        self.scale = scale

    def finetune(self, task: Task) -> Any:
        model = task.pretrained.copy()
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.mul_(self.scale)
            right = 0
            if task.held is not None:
                ids = torch.tensor([one[0] for one in task.held_out.images.class_map])
                for batch in task.held_out.batches():
                    guess = model(batch.images)[:, ids].argmax(1)
                    right += int((guess == batch.labels).sum())
                right = 100 * right / len(task.held)  # type: ignore[assignment]
        Spy.seen.append((self.scale, task, right))
        return model


def spies() -> Catalog:
    Spy.seen.clear()
    return catalog_with(
        (MethodSpec(name="spy", target="", summary="", reads=("{data}",)), Spy),
        (MethodSpec(name="second", target="", summary=""), Spy),
    )


def test_candidates_are_trained_on_one_split_and_the_best_on_its_other_part_is_chosen() -> None:
    plan, _ = run_of(["second", "spy"], spies(), search="spy:scale=-1,0,1", seed=[0, 1], limit=5)
    assert any("20% of each fine-tuning set is held out" in note for note in plan.notes)
    for name in ("digits-v2", "digits-r"):
        parts = []
        whole = load_catalog().bind("dataset", name).build().open(None).limited(5)
        for seed in (0, 1):
            given = [
                (scale, task, right)
                for scale, task, right in Spy.seen
                if task.seed == seed and set(task.images.source) <= set(whole.source)
            ]
            assert sorted(scale for scale, *_ in given) == [-1, 0, 1, 1]
            splits = {
                (tuple(task.images.names), tuple(task.held_out.images.names))
                for _, task, _ in given
            }
            ((rest, held),) = splits
            assert not set(rest) & set(held)
            assert sorted([*rest, *held]) == sorted(whole.names)
            assert len(held) == round(0.2 * len(whole))
            parts.append(held)
            steps = tuned(plan, name)
            step = steps[f"search(spy,scale=-1|0|1)@{seed}"]
            tried = facts(step)["tried"]
            right = {f"testing/spy:scale={s:g}": r for s, _, r in given}
            assert set(tried) == set(right)
            assert {k: v["accuracy"] for k, v in tried.items()} == pytest.approx(right)
            assert {v["n"] for v in tried.values()} == {len(held)}
            assert right["testing/spy:scale=1"] > max(
                right["testing/spy:scale=0"], right["testing/spy:scale=-1"]
            )
            assert facts(step)["chosen"] == facts(step)["same_as"] == "testing/spy:scale=1"
        assert parts[0] != parts[1]


def test_a_method_is_given_no_dataset_that_scores_but_the_one_it_is_tuned_on() -> None:
    def reached(value: Any) -> set[str]:
        if isinstance(value, Mapping):
            return set().union(*map(reached, value.values()))
        images = getattr(value, "images", value)
        return set(images.source) if hasattr(images, "source") else set()

    run_of(["spy", "spy:data=digits-train"], spies(), search="spy:scale=0,1")
    names = ("digits-v2", "digits-r", "digits-train")
    catalog = load_catalog()
    sources = {n: set(catalog.bind("dataset", n).build().open(None).source) for n in names}
    assert not set.intersection(sources["digits-v2"], sources["digits-r"])
    kinds = Counter[tuple[str, ...]]()
    for _, task, _ in Spy.seen:
        seen = set().union(*(reached(value) for value in vars(task).values()))
        assert seen <= set().union(*sources.values())
        kinds[tuple(name for name in names if seen & sources[name])] += 1
    assert kinds == {
        ("digits-v2",): 2, ("digits-r",): 2,
        ("digits-v2", "digits-train"): 2, ("digits-r", "digits-train"): 2,
    }  # fmt: skip


def test_two_knobs_are_searched_together_and_a_sweep_is_outside_of_them() -> None:
    catalog = spies()
    both = tuned(plan_of("spy", catalog, search=["scale=2,3", "other=4,5"]))
    pairs = [(a, b) for a in (2.0, 3.0) for b in (4, 5)]
    assert list(both)[:4] == [f"spy:scale={a},other={b}@0" for a, b in pairs]
    assert list(both)[4:] == ["search(spy,scale=2|3,other=4|5)@0"]
    mixed = tuned(plan_of("spy", catalog, search="scale=2,3", sweep="other=4,5"))
    chosen = {name: step for name, step in mixed.items() if name.startswith("search")}
    assert list(chosen) == [f"search(spy:other={b},scale=2|3)@0" for b in (4, 5)]
    for b, step in zip((4, 5), chosen.values(), strict=True):
        options = [n.method.options for n in step.needs.values() if n.method]
        assert [(o["scale"], o["other"]) for o in options] == [(2.0, b), (3.0, b)]
    prefixed = tuned(plan_of(["spy", "second"], catalog, search="second:scale=2,3"))
    assert "spy@0" in prefixed and "search(second,scale=2|3)@0" in prefixed


def test_a_title_is_in_no_key() -> None:
    searched = plan_of("l2-sp", search="alpha=0.2,0.3")
    members = "(cl-methods/l2-sp:alpha=0.2)+(cl-methods/l2-sp:alpha=0.3)"
    chosen = plan_of(f"best-of:members=({members})", recipe={"max_steps": 2, "held_out": 0.2})
    assert {s.key for s in searched.steps} == {s.key for s in chosen.steps}
    assert {s.id for s in searched.steps} != {s.id for s in chosen.steps}


def test_a_knob_that_turns_nothing_is_refused() -> None:
    for text in ("alpha", "alpha=1", "alpha=1,1", "=1,2", "alpha=1,,2"):
        assert "expected [METHOD:]OPTION=VALUE,VALUE,…" in problem("l2-sp", search=text)
        assert problem("l2-sp", sweep=text).startswith("--sweep: expected")
    assert "Did you mean 'alpha'?" in problem("l2-sp", search="alhpa=1,2")
    said = problem(["l2-sp", "ft"], search="ewc:lambda=1,2")
    assert "this run has no method 'ewc'" in said
    assert "no option of the method 'ft'" in problem(["l2-sp", "ft"], sweep="ft:alpha=1,2")
    assert "option alpha=x" in problem("l2-sp", search="alpha=x,2")
    knob = Values.parse("cl-methods/wise-ft:base=(lwf:alpha=2,temperature=3),ft", "--sweep")
    assert knob == Values("cl-methods/wise-ft", "base", ("(lwf:alpha=2,temperature=3)", "ft"))


def test_a_value_of_a_sweep_is_the_method_asked_for_on_its_own() -> None:
    swept = tuned(plan_of(["l2-sp", "ft"], sweep="alpha=0.1,0.2"))
    assert list(swept) == ["l2-sp@0", "l2-sp:alpha=0.2@0", "ft@0"]
    asked = tuned(plan_of(["l2-sp", "l2-sp:alpha=0.2", "ft"]))
    assert {n: s.key for n, s in swept.items()} == {n: s.key for n, s in asked.items()}
    twice = tuned(plan_of(["l2-sp", "l2-sp:alpha=0.2", "ft"], sweep="alpha=0.1,0.2"))
    assert list(twice) == list(swept)


def test_all_checkpoints_of_a_sweep_share_one_pass_over_a_dataset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: list[int] = []
    score = evaluate.evaluate

    def counting(classifiers: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(len(classifiers))
        return score(classifiers, *args, **kwargs)

    monkeypatch.setattr(evaluate, "evaluate", counting)
    run_of("wise-ft", sweep="alpha=0.2,0.5,0.8")
    assert passes == [1, 1, 1, 6, 6, 6]  # v2, r and test: untouched, then 3 values × 2 sources


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_held_out_part_has_the_share_of_every_class(share: float) -> None:
    counts = np.array([40, 40, 40])
    labels = np.random.default_rng(0).permutation(np.repeat([4, 0, 7], counts))
    for seed in range(20):
        part = held_out(labels, np.arange(len(labels)), share, seed)
        assert part.tolist() == sorted(set(part.tolist()))
        # Classes of one size differ by one image at most, so an integer share is exact.
        assert np.bincount(labels[part])[[0, 4, 7]].tolist() == [40 * share] * 3
    sizes = np.array([400, 150, 60, 7, 1])
    labels = np.repeat(np.arange(5), sizes)
    for seed in range(20):
        part = held_out(labels, np.arange(len(labels)), share, seed)
        assert len(part) == round(share * len(labels))
        # One threshold t for all: |count − t n| < 1 in each class, so |t − share| N ≤ C.
        bound = 1 + len(sizes) * sizes / len(labels)
        assert np.all(np.abs(np.bincount(labels[part], minlength=5) - share * sizes) <= bound)


def test_the_held_out_part_is_drawn_by_the_seed_and_leaves_something_to_train_on() -> None:
    labels = np.repeat(np.arange(10), 9)
    one, again, other = (held_out(labels, np.arange(len(labels)), 0.2, seed) for seed in (0, 0, 1))
    assert one.tolist() == again.tolist() != other.tolist()
    assert held_out(labels, np.arange(len(labels)), 0.0, 0).size == 0
    singletons = np.random.default_rng(1).permutation(50)
    assert len(held_out(singletons, np.arange(len(singletons)), 0.2, 0)) == 10
    assert len(held_out(np.arange(4), np.arange(4), 0.01, 0)) == 1
    assert len(held_out(np.array([3, 3]), np.arange(2), 0.99, 0)) == 1
    drawn = Counter(
        int(i) for seed in range(400) for i in held_out(np.arange(5), np.arange(5), 0.2, seed)
    )
    assert set(drawn) == set(range(5)) and min(drawn.values()) > 400 / 5 - 5 * 8  # 5 σ


def test_a_share_in_the_recipe_is_held_out_of_every_method(
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ["plan", "--json", "-b", "digits-conv", "-m", "ft", *OPTIONS[:-3], "10"]
    updates = []
    for share in ("0", "0.5"):
        sets = ["recipe.epochs=1", "recipe.batch_size=1", f"recipe.held_out={share}"]
        assert cli._code([*base, *(x for s in sets for x in ("--set", s))]) == 0
        steps = json.loads(capsys.readouterr().out)["steps"]
        updates.append(sum(step["updates"] for step in steps))
    catalog = load_catalog()
    sets_ = [catalog.bind("dataset", n).build().open(None) for n in SMALL["dataset"]]
    n = [len(one.limited(10)) for one in sets_]
    assert updates == [sum(n), sum(n) - sum(round(one / 2) for one in n)]
    assert cli._code([*base, "--set", "recipe.held_out=1"]) == 1
    assert "recipe.held_out: Input should be less than 1" in capsys.readouterr().err
    config = {"max_steps": 2, "held_out": 0.4}
    run_of(["second", "greedy-soup:members=second+ft"], spies(), recipe=config, limit=5)
    shares = {len(t.held_out.images) / (len(t.images) + len(t.held_out.images))
              for _, t, _ in Spy.seen}  # fmt: skip
    assert shares == {0.4} and len(Spy.seen) == 2  # the recipe's own share wins; made once


def test_the_hardest_images_are_kept_of_those_that_are_not_held_out() -> None:
    """Expected: the scores file of the A_pre step, sorted here."""
    recipe = {"max_steps": 2, "held_out": 0.3, "keep": 0.5, "keep_by": "loss"}
    plan, _ = run_of("second", spies(), recipe=recipe, limit=6)
    for name in ("digits-v2", "digits-r"):
        step = tuned(plan, name)["second@0"]
        assert step.pre is not None
        table = Scores.read(Store("store").folder(step.pre.key) / "scores.parquet")
        labels, nll, source = (table.column(c) for c in ("label", "nll", "source"))
        held = held_out(labels, source, 0.3, 0)
        rest, hardest = np.delete(np.arange(len(labels)), held), set[str]()
        for label in np.unique(labels[rest]):
            members = rest[labels[rest] == label]
            count = max(1, round(0.5 * len(members)))
            hardest |= set(source[members[np.argsort(nll[members])][-count:]])
        (task,) = (t for _, t, _ in Spy.seen if set(t.images.source) <= set(source))
        assert set(task.images.source) == hardest
        assert set(task.held_out.images.source) == set(source[held])


def test_a_member_of_another_seed_has_the_same_images_held_out() -> None:
    """Else it would have been trained on the images that choose: its split is the run's."""
    catalog, seen = spying()
    run_of("best-of:members=spy+spy@1", catalog, limit=6)
    trained, held = seen["trained"], seen["held"]
    assert len(trained) == 4 and len(held) == 2
    for names in trained:
        assert not any(names & apart for apart in held)


def spying() -> tuple[Catalog, dict[str, list[set[str]]]]:
    """A method that notes what it is trained on, and `best-of`'s held-out images beside it."""
    seen: dict[str, list[set[str]]] = {"trained": [], "held": []}

    class Spy:
        def finetune(self, task: Task) -> Any:
            seen["trained"].append({f"{task.label.split('/')[2]}:{s}" for s in task.images.source})
            held = {f"{task.label.split('/')[2]}:{s}" for s in task.held_out.images.source}
            if held not in seen["held"]:
                seen["held"].append(held)
            return task.pretrained.copy()

    return catalog_with((MethodSpec(name="spy", target="", summary=""), Spy)), seen


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("soup:members=(best-of:members=ft+lwf)", ["best-of:members=ft+lwf"]),
        ("soup:members=((best-of:members=ft+lwf)+ft)", ["best-of:members=ft+lwf", "ft"]),
        ("wise-ft:base=(soup:members=ft+lwf)", ["soup:members=ft+lwf"]),
        ("wise-ft:base=((lwf:alpha=2))", ["lwf:alpha=2"]),
        ("wise-ft:base=lwf:alpha=2", ["lwf:alpha=2"]),
        ("soup:members=lwf:alpha=2+ft", ["lwf:alpha=2", "ft"]),
    ],
)
def test_brackets_say_what_belongs_together(text: str, needs: list[str]) -> None:
    plan, _ = run_of(text)
    step = [s for s in tuned(plan).values() if s.needs][-1]
    assert list(step.needs) == needs
    again = plan_of(step.method.id if step.method is not None else "")
    assert {s.key for s in again.steps} == {s.key for s in plan.steps}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wise-ft:base=ft+lwf", "expected one method, got 'ft+lwf'"),
        ("lp-ft:second=ft+lwf", "expected one method, got 'ft+lwf'"),
        ("tpgm:base=ft+lwf", "expected one method, got 'ft+lwf'"),
        ("ewc:data=digits-train+digits-v2", "expected one dataset, got 'digits-train+digits-v2'"),
    ],
)
def test_a_sum_is_refused_where_one_is_meant(text: str, expected: str) -> None:
    assert expected in problem(text)


def test_a_dataset_made_from_photographs_that_score_the_run_may_not_be_read() -> None:
    said = problem("ewc:data=digits-cartoon")
    assert "it is made from the photographs of digits-test, which scores this run" in said


def test_a_chain_of_methods_without_an_end_is_refused() -> None:
    class Grow:
        def __init__(self, base: str = "ft"):
            self.base = base

    spec = MethodSpec(name="grow", target="", summary="", needs=("grow:base=({base}+ft)",))
    with pytest.raises(ConfigError, match="methods that need methods, 12 deep and more"):
        plan_of("grow", catalog_with((spec, Grow)))


def test_a_saved_configuration_of_a_search_finds_everything_done() -> None:
    run_of("lwf", search=("alpha=0.5,2",), sweep=("temperature=1,2",))
    (saved, *_) = sorted(Path("store/configs").glob("*.toml"))
    plan = make_plan(make_config({}, saved), load_catalog(), Store("store"))
    assert plan.missing == []
    assert {len(step.needs) for step in plan.steps if step.kind == "finetune"} == {0, 2}


@pytest.mark.parametrize("name", ["digits-c", "digits-a", "digits-v2"])
def test_a_photograph_is_held_out_with_all_its_versions(name: str) -> None:
    """Expected: no photograph on both sides, and the share of photographs."""
    images = load_catalog().bind("dataset", name).build().open(None)
    apart = held_out(images.labels, images.source, 0.2, 0)
    held, trained = set(images.source[apart]), set(np.delete(images.source, apart))
    assert held and not held & trained
    assert len(held) == round(0.2 * len(set(images.source)))


def test_a_pruned_set_is_that_of_the_run_for_members_of_other_seeds() -> None:
    catalog, seen = spying()
    recipe = {"max_steps": 1, "per_class": 2, "held_out": 0.2}
    run_of("best-of:members=spy+spy@1+spy@2", catalog, limit=8, recipe=recipe)
    assert len(seen["trained"]) == 6 and len({frozenset(one) for one in seen["trained"]}) == 2


def test_a_value_that_diverges_is_not_chosen_and_kills_no_search() -> None:
    with pytest.raises(PartialFailureError) as caught:
        run_of("l2-sp", search="alpha=0.1,1e30", recipe={"max_steps": 4})
    assert len(caught.value.failures) == 2
    assert all("alpha=1e+30" in step for step in caught.value.failures)
    (result,) = caught.value.results
    assert result.complete
    for chosen in result.facts.values():
        assert chosen["chosen"] == "cl-methods/l2-sp:alpha=0.1"
        assert chosen["diverged"] == ["cl-methods/l2-sp:alpha=1e30"]
    assert "chose: digits-v2 l2-sp:alpha=0.1 (of l2-sp:alpha=0.1" in result.describe_choices()[0]


def test_a_value_that_a_method_refuses_leaves_no_run_behind() -> None:
    with pytest.raises(ConfigError, match="ewc: expected lambda ≥ 0"):
        run_of("ewc:lambda=-1")
    assert not Path("store").exists()


def test_a_dataset_that_is_read_may_have_options() -> None:
    plan = plan_of("ewc:data=digits-train", data=["digits-train"])
    assert [list(s.reads) for s in tuned(plan).values()] == [["digits-train"]]
    catalog = load_catalog()
    train = catalog.bind("dataset", "imagenet-train:per_class=3")
    assert train.arguments()["split"] == "train" and train.spec.may_train
    assert "has no dataset 'digits-train'" in problem("ft", data=["digits-train"])


def test_an_architecture_that_nobody_can_rebuild_is_told_before_it_is_stored() -> None:
    class Wider:
        def finetune(self, task: Task) -> Any:
            model = task.pretrained.copy()
            model.head = torch.nn.Linear(64, 12)
            return model

    class Nothing:
        def finetune(self, task: Task) -> None:
            return None

    for target, said in ((Wider, "mergeable=False"), (Nothing, "gave NoneType, no Classifier")):
        spec = MethodSpec(name="odd", target="", summary="")
        with pytest.raises(PartialFailureError, match=said):
            run_of("odd", catalog_with((spec, target)))


def test_a_bracket_that_is_not_closed_is_told() -> None:
    assert "a bracket is not closed in '(ft'" in problem("soup:members=(ft")
