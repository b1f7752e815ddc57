"""The statistics of robustness, on plain arrays: intervals, paired tests, many comparisons."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

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
    """

    estimate: float
    low: float
    high: float
    level: float = 95.0
    covers: str = "images"

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
    return Interval(estimate, float(low), float(high), level, covers)


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


def seed_noise(values: Sequence[float], count: int, seed: str) -> Floats:
    """Draws of how far the mean over these seeds may lie from that over all seeds.

    Student's t with S − 1 degrees of freedom, scaled by the seeds' standard error: three seeds
    say little of their own spread, and resampling them would say too much.

    Args:
        values: the number of each of S ≥ 2 seeds.
        count: of draws.
        seed: a text.
    """
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    digest = hashlib.sha256(f"seeds/{seed}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    noise: Floats = error * generator.standard_t(len(values) - 1, count)
    return noise


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


@dataclass(frozen=True)
class SignFlip:
    """An exact test of whether paired differences are centred on zero.

    Args:
        p: two-sided.
        smallest: the least p that so many differences allow.
        n: number of differences.
    """

    p: float
    smallest: float
    n: int


def sign_flip(differences: Sequence[float]) -> SignFlip:
    """The sign-flip permutation test over the RI_i of two methods, all 2^n flips.

    Args:
        differences: one a source; at most 20.

    Example:
        >>> sign_flip([1.0, 2.0, 3.0]).p
        0.25
    """
    if not 1 <= len(differences) <= 20:
        raise ValueError(f"expected 1 to 20 differences, got {len(differences)}")
    values = np.asarray(differences, dtype=np.float64)
    signs = np.array(list(product((1.0, -1.0), repeat=len(values))))
    sums, observed = np.abs(signs @ values), abs(values.sum())
    # Sums of the same numbers in another order are equal only up to rounding.
    extreme = sums >= observed - 1e-9 * np.abs(values).sum()
    return SignFlip(float(extreme.mean()), 2.0 / len(signs), len(values))
