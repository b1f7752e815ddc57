"""The statistics against statsmodels, scipy, numpy and arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as peer_mcnemar
from statsmodels.stats.multitest import multipletests

from rib_harness import statistics
from rib_harness.statistics import (
    Interval,
    clustered_mcnemar,
    holm,
    mcnemar,
    over_seeds,
    percentile_interval,
    resamples,
    welch,
    without_interaction,
)


def drawn(n: int, count: int, seed: str) -> NDArray[np.float32]:
    return np.concatenate(list(resamples(n, count, seed)))


# Holm


@pytest.mark.parametrize(
    "p_values",
    [
        [0.03],
        [1.0],
        [0.0, 0.0],
        [1.0, 1.0, 1.0],
        [0.02, 0.02, 0.02],
        [0.04, 0.01, 0.04, 0.01],
        [0.6, 0.001, 0.5, 1.0, 0.0],
        [0.05, 0.025, 0.0167, 0.0125],
    ],
)
def test_holm_on_edge_input(p_values: list[float]) -> None:
    """Source: statsmodels, `multipletests(method="holm")`."""
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-15)


def test_holm_on_random_input() -> None:
    """Source: statsmodels, `multipletests(method="holm")`; half of the values are tied."""
    rng = np.random.default_rng(0)
    for size in range(1, 60):
        p_values = np.where(rng.random(size) < 0.5, rng.random(size), rng.choice([0.01, 0.2], size))
        p_values = p_values ** rng.integers(1, 6)
        expected = multipletests(p_values, method="holm")[1]
        assert holm(list(p_values)) == pytest.approx(expected, abs=1e-15)


def test_holm_of_nothing_is_nothing() -> None:
    """Source: the definition."""
    assert holm([]) == []


# McNemar


@pytest.mark.parametrize(
    ("gained", "lost"),
    [(0, 0), (1, 0), (0, 1), (1, 1), (0, 12), (12, 0), (7, 7), (5, 6), (30, 12), (400, 520)],
)
def test_mcnemar_is_the_exact_test(gained: int, lost: int) -> None:
    """Source: statsmodels, `mcnemar(exact=True)`."""
    expected = peer_mcnemar([[11, lost], [gained, 4]], exact=True).pvalue
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_where_all_ten_are_lost() -> None:
    """Source: by hand, 2 · (1/2)¹⁰."""
    assert mcnemar(0, 10) == pytest.approx(2 * 0.5**10, rel=1e-12)


def test_clustered_mcnemar_with_a_row_a_photograph_is_the_plain_chi_square_test() -> None:
    """Source: statsmodels, `mcnemar(exact=False, correction=False)`."""
    rng = np.random.default_rng(1)
    for n in (1, 5, 40, 3000):
        kind = rng.choice(4, n, p=[0.4, 0.15, 0.1, 0.35])
        gained, lost = (kind == 1).astype(float), (kind == 2).astype(float)
        table = [[(kind == 0).sum(), lost.sum()], [gained.sum(), (kind == 3).sum()]]
        if gained.sum() + lost.sum():
            peer = peer_mcnemar(table, exact=False, correction=False).pvalue
            assert clustered_mcnemar(gained, lost) == pytest.approx(peer, rel=1e-10)


def test_clustered_mcnemar_on_a_worked_example() -> None:
    """Source: Durkalski et al. 2003 by hand: (Σd)²/Σd² = 3²/(4 + 1 + 1 + 0 + 1) = 9/7."""
    gained, lost = np.array([3.0, 0, 1, 2, 1]), np.array([1.0, 1, 0, 2, 0])
    expected = stats.norm.sf(np.sqrt(9 / 7)) * 2  # χ² with one degree of freedom is a normal's
    assert clustered_mcnemar(gained, lost) == pytest.approx(expected, rel=1e-12)


def test_clustered_mcnemar_counts_copies_of_a_photograph_once() -> None:
    """Source: the formula does not change when every d_k is multiplied by a number."""
    gained, lost = np.array([1.0, 0, 1, 1, 0, 1]), np.array([0.0, 1, 0, 0, 0, 0])
    once = clustered_mcnemar(gained, lost)
    assert clustered_mcnemar(75 * gained, 75 * lost) == pytest.approx(once, rel=1e-12)


def test_clustered_mcnemar_without_flips_is_one() -> None:
    """Source: the definition; also where each photograph gains what it loses."""
    assert clustered_mcnemar(np.zeros(4), np.zeros(4)) == 1.0
    assert clustered_mcnemar(np.array([2.0, 5.0]), np.array([2.0, 5.0])) == 1.0


def test_clustered_mcnemar_does_not_depend_on_the_direction() -> None:
    """Source: symmetry."""
    rng = np.random.default_rng(2)
    gained, lost = rng.integers(0, 5, (2, 50)).astype(float)
    assert clustered_mcnemar(gained, lost) == clustered_mcnemar(lost, gained)


# Intervals and resamples


@pytest.mark.parametrize(("level", "low", "high"), [(95.0, 2.5, 97.5), (90.0, 5, 95), (68, 16, 84)])
def test_percentile_interval(level: float, low: float, high: float) -> None:
    """Source: `numpy.quantile`."""
    draws = np.random.default_rng(4).gamma(2.0, 1.0, 777)
    found = percentile_interval(3.25, draws, level, covers="images and seeds")
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(draws, [low / 100, high / 100])), rel=1e-12
    )
    assert (found.estimate, found.level, found.covers) == (3.25, level, "images and seeds")


def test_an_interval_in_words_and_its_half_width() -> None:
    """Source: by hand."""
    interval = Interval(-1.234, -3.0, 1.0)
    assert str(interval) == "-1.23 [-3.00, +1.00]"
    assert (interval.half, interval.level, interval.covers) == (2.0, 95.0, "images")


@pytest.mark.parametrize("chunk", [2**22, 30, 1])
def test_resamples_are_multinomial(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Source: the multinomial's moments: mean 1, variance 1 − 1/n, covariance −1/n.

    Whatever the size of the chunks; bounds are 5 standard errors.
    """
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    n, count = 7, 20_000
    times = drawn(n, count, "seed").astype(float)
    assert times.shape == (count, n)
    assert (times.sum(1) == n).all()
    assert (times == times.round()).all() and times.min() == 0
    assert times.mean(0) == pytest.approx(np.ones(n), abs=5 / count**0.5)
    expected = np.eye(n) - 1 / n
    assert np.cov(times.T) == pytest.approx(expected, abs=5 * 1.5 / count**0.5)
    assert stats.chisquare(
        np.bincount(times[:, 0].astype(int).clip(0, 4), minlength=5),
        count * np.append(stats.binom.pmf(range(4), n, 1 / n), stats.binom.sf(3, n, 1 / n)),
    ).pvalue > 1e-4  # fmt: skip


def test_resamples_one_after_another_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: the correlation of independent draws is 0 ± 5/√count, across chunks as well."""
    monkeypatch.setattr(statistics, "CHUNK", 3 * 5)
    first = drawn(5, 20_001, "seed")[:, 0]
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 5 / 20_000**0.5
    assert len({tuple(row) for row in drawn(40, 200, "seed")}) == 200


def test_resamples_are_a_function_of_the_seed() -> None:
    """Source: the promise that the same text gives the same draws, and another text others."""
    assert (drawn(20, 50, "a") == drawn(20, 50, "a")).all()
    assert (drawn(20, 50, "a") != drawn(20, 50, "b")).any()
    before = np.random.get_state()[1].copy()
    drawn(20, 50, "a")
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize(("n", "count"), [(1, 3), (2, 1), (5, 0), (3, 100)])
def test_resamples_of_few(n: int, count: int) -> None:
    """Source: by hand; of one photograph there is one resample only."""
    rows = list(resamples(n, count, "s"))
    assert sum(map(len, rows)) == count
    if n == 1:
        assert (rows[0] == 1).all()


def test_resamples_hold_no_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: the definition of `CHUNK`; a single row that is longer is whole."""
    monkeypatch.setattr(statistics, "CHUNK", 100)
    assert [rows.shape for rows in resamples(30, 10, "s")] == [(3, 30), (3, 30), (3, 30), (1, 30)]
    assert [rows.shape for rows in resamples(101, 2, "s")] == [(1, 101), (1, 101)]


# Seeds

SIDES = [[1.0, 4.0], [0.0, 1.0, 5.0], [3.0, 3.5, 2.0, 8.0, 1.0]]


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 1), (1, 2), (2, 0)])
def test_welch_is_scipys(a: int, b: int) -> None:
    """Source: `scipy.stats.ttest_ind(equal_var=False)`: its degrees of freedom and statistic."""
    one, other = SIDES[a], [10 * value for value in SIDES[b]]
    error, freedom = welch([one, other])
    peer = stats.ttest_ind(one, other, equal_var=False)
    assert freedom == pytest.approx(peer.df)
    assert (np.mean(one) - np.mean(other)) / error == pytest.approx(peer.statistic)


@pytest.mark.parametrize("values", SIDES)
def test_one_side_varies_as_students_t(values: list[float]) -> None:
    """Source: `scipy.stats.kstest` against t with S − 1 degrees of freedom, scaled by sd/√S."""
    noise = over_seeds(np.zeros(40_000), [values], "s")
    scale = np.std(values, ddof=1) / len(values) ** 0.5
    peer = stats.t(len(values) - 1, scale=scale)
    assert stats.kstest(noise, peer.cdf).pvalue > 1e-3
    # So the interval is the textbook one of a mean with unknown variance.
    assert np.quantile(noise, 0.975) == pytest.approx(peer.ppf(0.975), rel=0.15)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 1), (1, 2)])
def test_of_a_difference_the_interval_is_welchs(a: int, b: int) -> None:
    """Source: `ttest_ind(equal_var=False).confidence_interval`, where images vary in nothing."""
    one, other = SIDES[a], [10 * value for value in SIDES[b]]
    peer = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    noise = over_seeds(np.zeros(200_000), [one, other], "s")
    half = (peer.high - peer.low) / 2
    assert np.quantile(noise, [0.025, 0.975]) == pytest.approx([-half, half], rel=0.05)


def test_where_images_vary_much_the_interval_is_normal() -> None:
    """Source: the quantile of the normal distribution: seeds that agree say nothing more."""
    draws = np.random.default_rng(1).normal(7, 1, 200_000)
    noisy = over_seeds(draws, [[1.0, 1.001, 1.002], [1.0, 1.001, 1.002]], "s")
    assert np.quantile(noisy, [0.025, 0.975]) == pytest.approx([7 - 1.96, 7 + 1.96], rel=0.01)


def test_what_varies_over_seeds_is_a_function_of_its_seed_and_nothing_where_seeds_agree() -> None:
    """Source: the definition."""
    draws = np.arange(9.0)
    for sides in ([[1, 2, 4]], [[1, 2, 4], [3, 5, 6]]):
        assert (over_seeds(draws, sides, "a") == over_seeds(draws, sides, "a")).all()
        assert (over_seeds(draws, sides, "a") != over_seeds(draws, sides, "b")).any()
    assert (over_seeds(draws, [[2.5, 2.5, 2.5]], "a") == draws).all()
    assert (over_seeds(draws, [[2.5, 2.5], [1.0, 1.0]], "a") == draws).all()


@pytest.mark.parametrize("interaction", [0.0, 0.5, 1.0])
def test_what_seeds_do_to_single_images_is_not_counted_twice(interaction: float) -> None:
    """Source: a linear model: of the variance of a mean over n seeds, 1/n of it is taken out."""
    rng = np.random.default_rng(3)
    seeds, many = 4, 200_000
    images = rng.normal(size=many) * (1 - interaction) ** 0.5
    each = images + interaction**0.5 * rng.normal(size=(seeds, many))
    kept = without_interaction(5 + each.mean(0), [each])
    assert kept.var() == pytest.approx(1 - interaction, abs=0.01)
    assert kept.mean() == pytest.approx(5, abs=0.02)


def test_p_is_the_share_beyond_zero_twice() -> None:
    """Source: by hand, with one draw more on each side, as for a permutation test."""
    draws = np.array([-1.0] * 5 + [1.0] * 95)
    assert percentile_interval(0.9, draws).p == pytest.approx(2 * 6 / 101)
    assert percentile_interval(0.9, -draws).p == pytest.approx(2 * 6 / 101)
    assert percentile_interval(0.9, draws + 3).p == pytest.approx(2 / 101)
    assert percentile_interval(0.0, np.zeros(10)).p == 1
