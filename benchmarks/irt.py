"""How well `compare --irt` finds the parameters that answers are drawn from.

    python benchmarks/irt.py [MODELS]...

For each number of models: the root mean square error of an ability, and of each set's slope its
relative bias and error, and how often its interval covers. Some seconds for 6, a minute for 20.
"""

from __future__ import annotations

import sys

import numpy as np

from rib_harness.irt import Answers, fit

#: Images of a set, and samples.
IMAGES, SAMPLES = 1000, 100

#: Of each set: the median slope of its images, the mean of their easiness and its deviation.
SETS = ((0.1, 2.0, 3.0), (0.3, 0.5, 2.0), (0.7, -1.0, 1.5), (1.5, 1.0, 2.0))


def sample(seed: int, models: int) -> tuple[np.ndarray, list[Answers]]:
    """Abilities, and answers to each set."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=models)
    abilities, answers = (raw - raw.mean()) / raw.std(), []
    for slope, mean, deviation in SETS:
        easiness = rng.normal(mean, deviation, (IMAGES, 1))
        slopes = np.exp(rng.normal(np.log(slope), 0.3, (IMAGES, 1)))
        chance = 1 / (1 + np.exp(-(slopes * abilities + easiness)))
        answers.append(Answers(rng.random(chance.shape) < chance, np.arange(models)))
    return abilities, answers


def main(models: int) -> None:
    """One row a set."""
    away, off, covers = [], [], []
    known = np.array([np.log(slope) for slope, _, _ in SETS])
    for seed in range(SAMPLES):
        abilities, answers = sample(seed, models)
        found, curves = fit(answers)
        slopes, errors = np.array([(one.log_slope, one.error) for one in curves]).T
        away.append(((found - abilities) ** 2).mean())
        off.append(np.exp(slopes - known) - 1)
        covers.append(np.abs(slopes - known) < 1.96 * errors)
    print(f"{models} models: abilities are off by {np.mean(away) ** 0.5:.3f}")
    for (slope, _, _), each, covered in zip(SETS, np.array(off).T, np.array(covers).T, strict=True):
        print(f"  slope {slope}: bias {each.mean():+.0%}, error {(each**2).mean() ** 0.5:.0%}, "
              f"covered {covered.mean():.0%}")  # fmt: skip


if __name__ == "__main__":
    for text in sys.argv[1:] or ["6", "9", "20"]:
        main(int(text))
