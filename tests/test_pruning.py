"""Subsets and pruning of a fine-tuning set. Expected values: NumPy's sort, written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rib_harness import MethodSpec, Results
from rib_harness.catalog import load_catalog
from rib_harness.config import Recipe, make_config
from rib_harness.engine.data import Pixels
from rib_harness.pruning import kept, kept_count
from rib_harness.runner import Session, execute, open_session
from rib_harness.testing import TINY, catalog_with, tiny_images

LABELS = np.array([0] * 10 + [1] * 4 + [2])
SCORES = {
    "nll": np.random.default_rng(0).random(15),
    "brier": np.random.default_rng(1).random(15),
}


@pytest.mark.parametrize("how", ["loss", "loss-easy", "el2n", "el2n-easy"])
def test_the_hardest_or_easiest_of_each_class_are_kept(how: str) -> None:
    recipe = Recipe(keep=0.5, keep_by=how)  # type: ignore[arg-type]
    score = SCORES["nll"] if how.startswith("loss") else np.sqrt(SCORES["brier"])
    expected: list[int] = []
    for label, share in ((0, 5), (1, 2), (2, 1)):
        members = np.flatnonzero(label == LABELS)
        order = members[np.argsort(score[members])]
        expected += list(order[:share] if how.endswith("easy") else order[-share:])
    assert kept(LABELS, recipe, 0, SCORES).tolist() == sorted(expected)
    # Not drawn: the seed changes nothing.
    assert kept(LABELS, recipe, 1, SCORES).tolist() == sorted(expected)


def test_a_random_part_is_drawn_by_the_seed_and_holds_its_share_of_each_class() -> None:
    recipe = Recipe(keep=0.5)
    one, again, other = (kept(LABELS, recipe, seed) for seed in (0, 0, 1))
    assert one.tolist() == again.tolist() != other.tolist()
    assert np.bincount(LABELS[one]).tolist() == [5, 2, 1]
    assert len(one) == kept_count(LABELS, recipe) == 8
    assert kept(LABELS, Recipe(per_class=3), 0).size == kept_count(LABELS, Recipe(per_class=3)) == 7
    both = Recipe(per_class=4, keep=0.5)
    assert np.bincount(LABELS[kept(LABELS, both, 0)]).tolist() == [2, 2, 1]
    assert kept(LABELS, Recipe(), 0).tolist() == list(range(15))


def test_el2n_is_the_norm_of_the_error_vector() -> None:
    """arXiv:2107.07075: ‖softmax(z) − y‖₂, which is the root of the Brier score that is kept."""
    from rib_harness.engine.evaluate import score

    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    error = logits.softmax(1) - torch.nn.functional.one_hot(labels, 4)
    torch.testing.assert_close(score(logits, labels)["brier"].sqrt(), error.norm(dim=1))


def test_without_scores_hardness_cannot_be_told() -> None:
    with pytest.raises(TypeError, match="needs the scores"):
        kept(LABELS, Recipe(keep=0.5, keep_by="loss"), 0)


@pytest.mark.parametrize("pack", [True, False])
def test_a_part_of_a_set_has_the_pixels_of_its_images(pack: bool) -> None:
    images = tiny_images(20)
    pixels = Pixels(images, TINY, pack=pack)
    chosen = np.array([3, 4, 11, 17])
    part = pixels.taken(chosen)
    (batch,) = part.batches([np.array([2, 0])])
    (whole,) = pixels.batches([np.array([11, 3])])
    assert np.array_equal(batch, whole)
    assert len(part) == 4
    assert part.images.labels.tolist() == images.labels[chosen].tolist()
    (again,) = part.taken(np.array([3])).batches([np.array([0])])
    assert np.array_equal(again, next(pixels.batches([np.array([17])])))


class Spy:
    """A method that trains nothing and says what it was given."""

    seen: dict[tuple[int, str], list[str]] = {}  # noqa: RUF012

    def finetune(self, task: Any) -> Any:
        images = task.images
        prefix = str(images.source[0]).split("/")[0]
        Spy.seen[task.seed, prefix] = images.source.tolist()
        assert len(task.pixels) == len(images)
        return task.pretrained.copy()


def run_spy(recipe: dict[str, Any], **settings: Any) -> Results:
    base = {
        "backbone": "digits-conv",
        "dataset": ["digits-a", "digits-r"],
        "method": "spy",
        "store": Path("store"),
        "recipe": recipe,
        "limit": 6,
    }
    config = make_config({**base, **settings})
    spec = MethodSpec(name="spy", target="", summary="")
    catalog = catalog_with((spec, Spy), base=load_catalog())
    session = open_session(config, catalog=catalog)
    return execute(replace(session)) if isinstance(session, Session) else session


def test_the_run_trains_on_the_hardest_images_of_the_untouched_backbone() -> None:
    """Expected: the scores file of the A_pre step, sorted here."""
    from rib_harness.scores import Scores
    from rib_harness.store import Store

    Spy.seen.clear()
    results = run_spy({"keep": 0.5, "keep_by": "loss"})
    record = results[0].record
    store = Store("store")
    for name in ("digits-a", "digits-r"):
        table = Scores.read(store.folder(record["cells"]["pre"][name]) / "scores.parquet")
        labels, nll, source = (table.column(c) for c in ("label", "nll", "source"))
        expected: set[str] = set()
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            share = max(1, round(0.5 * len(members)))
            expected |= set(source[members[np.argsort(nll[members])][-share:]])
        given = next(s for s in Spy.seen.values() if set(s) <= set(source))
        assert set(given) == expected
        assert len(given) < len(labels)
    assert "keep 0.5 by loss" in results_line(results)


def results_line(results: Results) -> str:
    from rib_harness.results import describe_recipe

    return describe_recipe(results[0].record["recipe"])


def test_the_plan_counts_updates_of_the_part_only() -> None:
    config: dict[str, Any] = {
        "backbone": "digits-conv",
        "dataset": ["digits-a", "digits-r"],
        "method": "ft",
        "store": Path("store"),
    }
    whole = open_session(make_config({**config, "recipe": {"epochs": 1, "batch_size": 1}})).plan
    half = open_session(
        make_config({**config, "recipe": {"epochs": 1, "batch_size": 1, "keep": 0.5}})
    ).plan
    assert half.totals()["updates"] == pytest.approx(whole.totals()["updates"] / 2, rel=0.05)
    assert {s.key for s in whole.steps if s.is_baseline} == {
        s.key for s in half.steps if s.is_baseline
    }


def test_which_to_keep_without_how_many_is_refused() -> None:
    from rib_harness import ConfigError

    with pytest.raises(ConfigError, match="keep_by=el2n needs keep below 1"):
        make_config({"recipe": {"keep_by": "el2n"}})
