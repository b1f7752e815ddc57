"""mRI, forgetting and relative robustness where datasets are made from the same photographs."""

from dataclasses import replace

import numpy as np
import pytest
from rib_plugin_metrics.matrix import (
    forgetting,
    forgetting_unshared,
    mri,
    mri_unshared,
    relative_robustness,
    ri,
)

from rib_harness import Cell, InapplicableError, IncompleteError, Matrix


def cells(**top1: float) -> dict[str, Cell]:
    return {name: Cell(value, round(value), 100) for name, value in top1.items()}


def by_hand() -> Matrix:
    """Members a, b, c; b and c are made from r."""
    return Matrix(
        members=("a", "b", "c"),
        references=("r", "s"),
        sources=("a", "b", "c"),
        pre=cells(a=50, b=60, c=70, r=80, s=90),
        post={
            "a": cells(a=90, b=55, c=60, r=70, s=88),
            "b": cells(a=52, b=95, c=74, r=78, s=91),
            "c": cells(a=40, b=66, c=99, r=50, s=75),
        },
        shares=(("b", "c", "r"),),
    )


def test_mri_unshared_by_hand() -> None:
    """Source: by hand: a (−5 − 10)/2; b and c only on a: 2 and −10."""
    assert mri_unshared(by_hand()) == pytest.approx((-7.5 + 2 - 10) / 3)


def test_without_shared_photographs_it_is_mri() -> None:
    """Source: the definition; sharing with a reference, or a set that is not here, is no matter."""
    apart = replace(by_hand(), shares=())
    assert mri_unshared(apart) == mri(apart) == mri(by_hand())
    assert mri_unshared(replace(apart, shares=(("a", "r"), ("b", "x")))) == mri(apart)


def test_a_source_that_shares_with_all_others_has_no_ri() -> None:
    """Source: by hand: with a member more and groups (a, c) and (b, c), c is left out."""
    matrix = replace(by_hand(), shares=(("a", "c"), ("b", "c")))
    assert mri_unshared(matrix) == pytest.approx((-5 + 2) / 2)


def test_where_every_pair_shares_there_is_no_such_mri() -> None:
    """Source: a mean of no numbers is none."""
    with pytest.raises(InapplicableError, match="every pair here shares them"):
        mri_unshared(replace(by_hand(), shares=(("a", "b", "c"),)))
    with pytest.raises(IncompleteError, match="at least one source"):
        mri_unshared(replace(by_hand(), sources=()))


def test_the_six_pairs_of_the_suite() -> None:
    """Source: NumPy over the 50 cells that are left of 56."""
    rng = np.random.default_rng(0)
    names = tuple("abcdefgh")
    pre, post = rng.uniform(0, 100, 8), rng.uniform(0, 100, (8, 8))
    rows = [cells(**dict(zip(names, map(float, row), strict=True))) for row in (pre, *post)]
    matrix = Matrix(names, (), names, rows[0], dict(zip(names, rows[1:], strict=True)),
                    (("f", "g", "h", "val"),))  # fmt: skip
    kept = ~np.eye(8, dtype=bool)
    kept[5:, 5:] = False
    assert kept.sum() == 50
    change = np.where(kept, post - pre, 0)
    assert mri_unshared(matrix) == pytest.approx(np.mean(change.sum(1) / kept.sum(1)))


def test_forgetting_unshared_by_hand() -> None:
    """Source: by hand: on r only a (10); on s a, b and c: 2, −1, 15."""
    assert forgetting_unshared(by_hand()) == pytest.approx((10 + 2 - 1 + 15) / 4)
    apart = replace(by_hand(), shares=(("b", "c"),))
    assert forgetting_unshared(apart) == forgetting(apart)


def test_where_every_source_shares_with_the_reference_there_is_none() -> None:
    """Source: a mean of no numbers is none."""
    matrix = replace(by_hand(), references=("r",), sources=("b", "c"))
    with pytest.raises(InapplicableError, match="not made from the photographs of r"):
        forgetting_unshared(matrix)
    with pytest.raises(InapplicableError, match="needs a reference set"):
        forgetting_unshared(replace(by_hand(), references=()))


@pytest.mark.parametrize(("gone", "needed"), [("a", True), ("b", False)])
def test_only_the_cells_of_pairs_that_are_left_are_needed(gone: str, needed: bool) -> None:
    """Source: the definition: c → b shares, c → a does not."""
    whole = by_hand()
    row = {j: cell for j, cell in whole.post["c"].items() if j != gone}
    matrix = replace(whole, post={**whole.post, "c": row})
    with pytest.raises(IncompleteError):
        mri(matrix)
    if needed:
        with pytest.raises(IncompleteError, match="c → a has no number yet"):
            mri_unshared(matrix)
    else:
        assert mri_unshared(matrix) == mri_unshared(whole)


def test_forgetting_unshared_needs_its_cells() -> None:
    """Source: the definition."""
    whole = by_hand()
    row = {j: cell for j, cell in whole.post["b"].items() if j != "s"}
    with pytest.raises(IncompleteError, match="b → s"):
        forgetting_unshared(replace(whole, post={**whole.post, "b": row}))


def test_relative_robustness_is_the_change_of_each_cell_and_its_mean_is_ri() -> None:
    """Source: by hand, and RI."""
    found = relative_robustness(by_hand())
    assert found == {"a": {"b": -5, "c": -10}, "b": {"a": 2, "c": 4}, "c": {"a": -10, "b": 6}}
    assert {i: sum(row.values()) / len(row) for i, row in found.items()} == ri(by_hand())
    whole = by_hand()
    with pytest.raises(IncompleteError, match="a → b"):
        relative_robustness(replace(whole, pre={"a": whole.pre["a"]}))
