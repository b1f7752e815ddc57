"""The statistics against statsmodels, scipy, numpy and arithmetic by hand."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

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
    percentile_interval,
    resamples,
    seed_noise,
    sign_flip,
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


# The sign-flip test


@pytest.mark.parametrize("n", [2, 3, 5, 8, 10])
def test_sign_flip_on_random_input(n: int) -> None:
    """Source: `scipy.stats.permutation_test(permutation_type="samples")`, all 2^n."""
    rng = np.random.default_rng(n)
    for shift in (0.0, 0.3, 2.0):
        differences = rng.normal(shift, 1, n)
        peer = stats.permutation_test(
            (differences,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=False
        )
        assert sign_flip(list(differences)).p == pytest.approx(peer.pvalue, abs=1e-12)


@pytest.mark.parametrize(
    "differences",
    [
        [0.0],
        [0.0, 0.0, 0.0],
        [1.0, -1.0],
        [0.1, 0.2, -0.3],
        [0.1] * 7 + [-0.1],
        [1.0, 1.0, 0.0, 0.0],
        [0.7, 0.1, 0.2, 0.3, -0.6, 1e-9],
        [1e6 + 0.1, -1e6, 0.3, 0.3],
    ],
)
def test_sign_flip_on_ties_and_zeros(differences: list[float]) -> None:
    """Source: a loop over all flips in exact arithmetic."""
    exact = [Fraction(str(d)) for d in differences]
    observed = abs(sum(exact))
    flips = list(product((1, -1), repeat=len(exact)))
    as_extreme = sum(
        abs(sum(s * d for s, d in zip(signs, exact, strict=True))) >= observed for signs in flips
    )
    assert sign_flip(differences).p == as_extreme / len(flips)


def test_the_smallest_p_of_eight_sources() -> None:
    """Source: metrics.md, .0078 = 2/2⁸; reached where all differences have one sign."""
    for sign in (1, -1):
        found = sign_flip([sign * d for d in (0.1, 5.0, 0.2, 0.3, 9.0, 1.0, 2.0, 0.01)])
        assert (found.n, round(found.smallest, 4)) == (8, 0.0078)
        assert found.p == found.smallest == 2 / 2**8


def test_sign_flip_does_not_depend_on_scale_or_direction() -> None:
    """Source: the definition."""
    differences = np.random.default_rng(3).normal(0.5, 1, 9)
    p = sign_flip(list(differences)).p
    for factor in (-1.0, 1e-6, 1e6):
        assert sign_flip(list(factor * differences)).p == p


@pytest.mark.parametrize("n", [0, 21])
def test_sign_flip_says_how_many_differences_it_takes(n: int) -> None:
    """Source: its docstring."""
    with pytest.raises(ValueError, match=f"1 to 20 differences, got {n}"):
        sign_flip([1.0] * n)


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


@pytest.mark.parametrize("values", [[1.0, 4.0], [0.0, 1.0, 5.0], [3.0, 3.5, 2.0, 8.0, 1.0]])
def test_seed_noise_is_students_t(values: list[float]) -> None:
    """Source: `scipy.stats.kstest` against t with S − 1 degrees of freedom, scaled by sd/√S."""
    noise = seed_noise(values, 40_000, "s")
    scale = np.std(values, ddof=1) / len(values) ** 0.5
    peer = stats.t(len(values) - 1, scale=scale)
    assert stats.kstest(noise, peer.cdf).pvalue > 1e-3
    if len(values) == 5:  # with fewer the fourth moment, or the variance, is infinite
        assert np.var(noise) == pytest.approx(peer.var(), rel=0.25)
    # So the interval is the textbook one of a mean with unknown variance.
    assert np.quantile(noise, 0.975) == pytest.approx(peer.ppf(0.975), rel=0.15)


def test_seed_noise_is_a_function_of_its_seed_and_nothing_where_seeds_agree() -> None:
    """Source: the definition."""
    assert (seed_noise([1, 2, 4], 9, "a") == seed_noise([1, 2, 4], 9, "a")).all()
    assert (seed_noise([1, 2, 4], 9, "a") != seed_noise([1, 2, 4], 9, "b")).all()
    assert (seed_noise([2.5, 2.5, 2.5], 9, "a") == 0).all()
    twice = seed_noise([2, 4, 8], 9, "a")
    assert twice == pytest.approx(2 * seed_noise([1, 2, 4], 9, "a"))
