"""The statistics of robustness, on plain arrays: intervals, paired tests, many comparisons."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Seeds from which on their variance is part of an interval.
SEEDS_NEEDED = 3

#: Numbers of resamples × photographs that are held at once.
CHUNK = 2**22


@dataclass(frozen=True)
class Interval:
    """An estimate and where the true value lies in `level` % of such samples.

    Args:
        estimate: the number itself.
        low, high: the ends.
        level: in %.
        covers: what varies in it: `"images"`, `"images and seeds"`, or of a difference `"images
            and seeds of A"` where only one side has seeds enough.
        p: two-sided, that 0 is the true value: twice the share of the draws on its other side.
    """

    estimate: float
    low: float
    high: float
    level: float = 95.0
    covers: str = "images"
    p: float | None = None

    @property
    def half(self) -> float:
        """Half its width."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return f"{self.estimate:+z.2f} [{self.low:+z.2f}, {self.high:+z.2f}]"


def percentile_interval(
    estimate: float, draws: Floats, level: float = 95.0, covers: str = "images"
) -> Interval:
    """The percentile interval of bootstrap draws (Efron 1979).

    Args:
        estimate: on the sample itself.
        draws: (B,), the same on resamples.
        level: in %.
        covers: see `Interval`.
    """
    tail = (100 - level) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(draws) + 1))
    return Interval(estimate, float(low), float(high), level, covers, p)


def resamples(n: int, count: int, seed: str) -> Iterator[NDArray[np.float32]]:
    """How often each of `n` photographs is drawn in each of `count` resamples, in chunks.

    Args:
        n: photographs; each resample draws as many with replacement.
        count: of resamples.
        seed: a text; the same text gives the same resamples.

    Yields:
        (some, n); rows sum to n.
    """
    digest = hashlib.sha256(f"{seed}/{n}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    step = max(CHUNK // n, 1)
    for start in range(0, count, step):
        rows = min(step, count - start)
        drawn = generator.integers(0, n, (rows, n), dtype=np.int32)
        drawn += n * np.arange(rows, dtype=np.int32)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n)
        yield times.reshape(rows, n).astype(np.float32)


def welch(sides: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Standard error of a difference of means of independent sides, and its degrees of freedom.

    One side is its own standard error with n − 1. Two are not two draws of t, whose tails would be
    added, but one, with degrees of freedom by Welch and Satterthwaite.

    Args:
        sides: the numbers of each of n ≥ 2 seeds.

    Source: Welch, Biometrika 34, 1947; Satterthwaite, Biometrics Bulletin 2, 1946.

    Example:
        >>> error, freedom = welch([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
        >>> round(error, 4), round(freedom, 2)
        (1.291, 2.94)
    """
    squares = [float(np.var(values, ddof=1)) / len(values) for values in sides]
    total = sum(squares)
    if total == 0:
        return 0.0, float(min(len(values) for values in sides) - 1)
    below = sum(v**2 / (len(values) - 1) for v, values in zip(squares, sides, strict=True))
    return total**0.5, total**2 / below


def over_seeds(draws: Floats, sides: Sequence[Sequence[float]], seed: str) -> Floats:
    """Draws over images, made to vary over seeds too.

    Few seeds say little of their own spread, and resampling them would say too much. So a mean over
    them gets draws of Student's t with n − 1 degrees of freedom, times the standard error. Of a
    difference, two such draws would add their tails: it gets normal draws, and images and seeds
    together are made to one t, whose degrees of freedom are those of the whole.

    Args:
        draws: (B,), on resamples of images.
        sides: as of `welch`.
        seed: a text.

    Source: `welch`'s; how often such intervals cover: `benchmarks/calibration.py`.
    """
    error, freedom = welch(sides)
    digest = hashlib.sha256(f"seeds/{seed}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    if len(sides) == 1 or error == 0:
        return draws + error * generator.standard_t(freedom, len(draws))
    share = error**2 / (error**2 + float(draws.var()))
    whole = freedom / share**2
    # A normal draw over the root of an independent χ² by its degrees of freedom is one of t.
    wider = (whole / generator.chisquare(whole, len(draws))) ** 0.5
    centre = float(draws.mean())
    noisy = draws - centre + error * generator.standard_normal(len(draws))
    return centre + wider * noisy


def without_interaction(draws: Floats, sides: Sequence[Floats]) -> Floats:
    """Draws over images, without what seeds do to single images: that is in the seeds' spread.

    Each seed gets other images right. On the same images this is a part of the spread over seeds,
    and on other images of how the mean over seeds varies; in a sum of the two it would count twice.
    Its mean square is that of seed × image in a table of seeds and images, with each random.

    Args:
        draws: (B,), of a mean over seeds or a difference of two, on resamples of images.
        sides: (n, B) each, those of every seed; n ≥ 2.

    Source: Cornfield & Tukey, Annals of Mathematical Statistics 27, 1956.
    """
    twice = sum(
        float(((each - each.mean(0)).var(axis=1)).sum()) / (len(each) * (len(each) - 1))
        for each in sides
    )
    total = float(draws.var())
    share = max(0.0, 1 - twice / total) ** 0.5 if total > 0 else 1.0
    centre = float(draws.mean())
    kept: Floats = centre + share * (draws - centre)
    return kept


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: are gains as likely as losses?

    Args:
        gained: images wrong before and right after.
        lost: images right before and wrong after.

    Source: doi:10.1007/BF02295996.
    """
    from scipy.stats import binomtest

    n = gained + lost
    return float(binomtest(gained, n, 0.5).pvalue) if n else 1.0


def clustered_mcnemar(gained: Floats, lost: Floats) -> float:
    """Two-sided p of McNemar's test where one photograph has several rows.

    χ² with one degree of freedom of (Σ_k d_k)² / Σ_k d_k², d_k = gained − lost of photograph k.
    With a row a photograph it is McNemar's test without continuity correction.

    Args:
        gained, lost: (P,), rows of each photograph.

    Source: Durkalski et al. 2003, doi:10.1002/sim.1438.
    """
    from scipy.stats import chi2

    net = gained - lost
    squares = float((net**2).sum())
    return float(chi2.sf(float(net.sum()) ** 2 / squares, 1)) if squares else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the given order: they hold for all of them together.

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = worst
    return adjusted
