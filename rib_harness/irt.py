"""Which datasets tell models apart: item response theory over the images of each.

Every image is an item, every checkpoint a respondent, and what is known is who is right where. An
image that all models get right says nothing of them, nor does one that none gets right; a set tells
models apart where its images go with the models' abilities and are about as hard as these are good.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rib_harness.arms import Arm
from rib_harness.errors import InapplicableError
from rib_harness.results import RunResult
from rib_harness.statistics import Floats, Interval
from rib_harness.store import Store
from rib_harness.uncertainty import photographs, right_rows

#: Version of the JSON form.
FORMAT = "rib-harness.irt/1"

#: Models that a fit needs: with fewer, what one image says of it is what the priors say.
MODELS = 6

#: Images of a dataset that a fit reads at most, one a photograph.
IMAGES = 2000

#: Standard deviation of log discrimination over the images of a dataset: the paper's prior.
SPREAD = 0.3

#: Mean and standard deviation of the priors of each dataset's μ, log σ and λ; see `fit`.
PRIORS = ((0.0, 5.0), (1.0, 1.0), (0.0, 1.0))

#: What it is, for those who read it.
WHAT_IT_SAYS = (
    "Abilities have mean 0 and standard deviation 1 over these models. right: in %. "
    "discrimination: what one such deviation adds to an image's logit, the mean over images, with "
    "95 % over images. spread: standard deviation of the images' easiness, in logits. inform.: of "
    "one image on the models' abilities, the most telling set first. error: standard error of an "
    "ability that is measured on this set alone. headroom: slope of an image's curve at the best "
    "model. All of it is of these models: others may be told apart by other sets."
)


@dataclass(frozen=True)
class Answers:
    """Who is right on the images of one dataset.

    Args:
        right: (N, M), whether each model is right on each image.
        models: (M,), which of all models these are.
    """

    right: NDArray[np.bool_]
    models: NDArray[np.int64]


@dataclass(frozen=True)
class Curves:
    """The curves of a dataset's images: logit of being right = exp(log a) · ability + easiness.

    Args:
        easiness: μ, the mean over images, in logits.
        spread: σ, their standard deviation.
        log_slope: λ, the mean of log a; its standard deviation is `SPREAD`.
        error: standard error of λ over images, the abilities given.
    """

    easiness: float
    spread: float
    log_slope: float
    error: float

    @property
    def discrimination(self) -> Interval:
        """The mean slope over images, in logits a standard deviation of the abilities."""
        ends = self.log_slope + 1.959964 * self.error * np.array([0.0, -1.0, 1.0])
        estimate, low, high = np.exp(ends + SPREAD**2 / 2)
        return Interval(float(estimate), float(low), float(high))

    def information(self, abilities: Floats) -> float:
        """Fisher's information of one image on an ability, a² p (1 − p); the mean over both."""
        slope, p, share = self._at(abilities)
        return float((p * (1 - p) * slope**2 @ share).mean())

    def slope_at(self, ability: float) -> float:
        """Derivative of the chance to be right, a p (1 − p); the mean over images."""
        slope, p, share = self._at(np.array([ability]))
        return float((p * (1 - p) * slope @ share)[0])

    def _at(self, abilities: Floats) -> tuple[Floats, Floats, Floats]:
        grid = _grid(len(abilities))
        eta, slope = _logits(np.array([self.easiness, np.log(self.spread), self.log_slope]),
                             abilities, grid)  # fmt: skip
        return slope, _expit(eta), np.exp(grid[2])


def fit(answers: Sequence[Answers]) -> tuple[Floats, list[Curves]]:
    """Abilities of all models, and the curves of each dataset.

        logit P(model m is right on image k of dataset d) = a_k θ_m + c_k
        c_k ~ N(μ_d, σ_d²),   log a_k ~ N(λ_d, 0.3²)

    The two-parameter logistic with easiness c = −a · difficulty, which stays finite where a set
    hardly tells models apart. Images are random and integrated over, since few models say little
    of one image; abilities θ, which thousands of images measure, have mean 0 and standard deviation
    1. They and μ_d, σ_d, λ_d maximise the marginal likelihood (Bock & Aitkin 1981, with the roles
    of items and respondents exchanged) times weak priors: μ_d ~ N(0, 5²), log σ_d ~ N(1, 1),
    λ_d ~ N(0, 1).

    Args:
        answers: of each dataset. A model need not be in each.

    Returns:
        (models,) abilities, and the curves in the order given.

    Raises:
        InapplicableError: too few models, or all are equally good.

    Source: after arXiv:2106.00840, which fits three parameters an image by variational inference
    with the same prior of log a; Bock & Aitkin, Psychometrika 46, 1981.
    """
    from scipy.optimize import minimize

    models = 1 + max((int(one.models.max(initial=-1)) for one in answers), default=-1)
    if models < MODELS:
        raise InapplicableError(
            f"Item response theory needs at least {MODELS} models that answered the same images; "
            f"here are {models}: run more methods, seeds or sources."
        )
    grids = [_grid(len(one.models)) for one in answers]
    patterns = [_patterns(one.right) for one in answers]
    start = np.concatenate([_crude_abilities(answers, models), *map(_crude_curves, answers)])

    def loss(x: Floats) -> tuple[float, Floats]:
        raw, curves = x[:models], x[models:].reshape(-1, 3)
        abilities, scale = _standardised(raw)
        total, gradient, upstream = 0.0, np.zeros((len(answers), 3)), np.zeros(models)
        for d, one in enumerate(answers):
            value, upon, gradient[d] = log_likelihood(
                curves[d], abilities[one.models], *patterns[d], grids[d]
            )
            upstream[one.models] += upon
            value, gradient[d] = _with_priors(curves[d], value, gradient[d])
            total += value
        # Of standardising: what moves or scales all abilities changes nothing.
        inward = upstream - upstream.mean() - abilities * (upstream @ abilities) / models
        return -total, -np.concatenate([inward / scale, gradient.ravel()])

    found = minimize(loss, start, jac=True, method="L-BFGS-B",
                     options={"maxiter": 1000, "maxfun": 2000, "ftol": 1e-11}).x  # fmt: skip
    abilities, _ = _standardised(found[:models])
    curves = [
        _with_error(x, abilities[one.models], patterns[d], grids[d])
        for d, (x, one) in enumerate(zip(found[models:].reshape(-1, 3), answers, strict=True))
    ]
    return abilities, curves


def log_likelihood(
    curves: Floats, abilities: Floats, right: Floats, times: Floats, grid: tuple[Floats, ...]
) -> tuple[float, Floats, Floats]:
    """Marginal log-likelihood of one dataset's answers, with its gradients.

    Args:
        curves: μ, log σ, λ.
        abilities: (M,).
        right: (P, M), 1 or 0: the patterns of right and wrong that occur.
        times: (P,), how many images have each.
        grid: of easiness, of log a, and log weights, each (Q,).

    Returns:
        the value, its gradient by the abilities, and by the curves.
    """
    from scipy.special import logsumexp

    eta, slope = _logits(curves, abilities, grid)  # (M, Q), (Q,)
    joint = right @ eta - np.logaddexp(0, eta).sum(0) + grid[2]  # log p = η − log(1 + exp η)
    each = logsumexp(joint, axis=1)
    share = np.exp(joint - each[:, None]) * times[:, None]
    pull = right.T @ share - share.sum(0) * _expit(eta)
    of_easiness, of_slope = pull.sum(0), (abilities @ pull) * slope
    curved = np.array([of_easiness.sum(), of_easiness @ grid[0] * np.exp(curves[1]),
                       of_slope.sum()])  # fmt: skip
    return float(times @ each), pull @ slope, curved


def _logits(curves: Floats, abilities: Floats, grid: tuple[Floats, ...]) -> tuple[Floats, Floats]:
    easiness = curves[0] + np.exp(curves[1]) * grid[0]
    slope = np.exp(curves[2] + SPREAD * grid[1])
    return np.outer(abilities, slope) + easiness, slope


def _grid(models: int) -> tuple[Floats, Floats, Floats]:
    """Nodes of two standard normal variables, and log weights; the finer, the more models."""
    count = max(33, 2 * int(4.5 * models**0.5) + 1)
    x = np.linspace(-4.5, 4.5, count)
    y, of_y = np.polynomial.hermite_e.hermegauss(7)
    weights = np.outer(np.exp(-(x**2) / 2), of_y)
    return (
        np.repeat(x, len(y)),
        np.tile(y, count),
        np.log(weights / weights.sum()).ravel(),
    )


def _expit(x: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(expit(x))


def _patterns(right: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Rows that occur, and how often: images with the same answers have the same likelihood."""
    rows, times = np.unique(right, axis=0, return_counts=True)
    return rows.astype(np.float64), times.astype(np.float64)


def _standardised(raw: Floats) -> tuple[Floats, float]:
    scale = float(raw.std())
    return (raw - raw.mean()) / scale, scale


def _crude_abilities(answers: Sequence[Answers], models: int) -> Floats:
    """Mean over datasets of the logit of each model's accuracy, less that of the others."""
    sums, counts = np.zeros(models), np.zeros(models)
    for one in answers:
        rate = _logit_of(one.right, axis=0)
        sums[one.models] += rate - rate.mean()
        counts[one.models] += 1
    raw = sums / np.maximum(counts, 1)
    if not raw.std() > 0:
        raise InapplicableError(
            "Item response theory compares models of different abilities: these are right equally "
            "often."
        )
    return _standardised(raw)[0]


def _crude_curves(one: Answers) -> Floats:
    return np.array([float(_logit_of(one.right)), *(mean for mean, _ in PRIORS[1:])])


def _logit_of(right: NDArray[np.bool_], axis: int | None = None) -> Floats:
    """Of the share that is right, with half an image added to each side."""
    n = right.size if axis is None else right.shape[axis]
    share = (right.sum(axis) + 0.5) / (n + 1)
    return np.asarray(np.log(share / (1 - share)))


def _with_priors(curves: Floats, value: float, gradient: Floats) -> tuple[float, Floats]:
    mean, deviation = np.array(PRIORS).T
    away = (curves - mean) / deviation
    return value - float(away @ away) / 2, gradient - away / deviation


def _with_error(
    curves: Floats, abilities: Floats, patterns: tuple[Floats, Floats], grid: tuple[Floats, ...]
) -> Curves:
    """The curves with λ's standard error from the curvature, of the gradient's differences."""

    def gradient(at: Floats) -> Floats:
        value, _, found = log_likelihood(at, abilities, *patterns, grid)
        return _with_priors(at, value, found)[1]

    step = 1e-4
    hessian = np.array([
        (gradient(curves + move) - gradient(curves - move)) / (2 * step)
        for move in step * np.eye(3)
    ])  # fmt: skip
    error = float(np.linalg.inv(-(hessian + hessian.T) / 2)[2, 2]) ** 0.5
    return Curves(float(curves[0]), float(np.exp(curves[1])), float(curves[2]), error)


# Of a store


@dataclass(frozen=True)
class Model:
    """One checkpoint: the untouched backbone, or what a method made of it.

    Args:
        backbone: label.
        method, seed, source: None of the untouched one.
        ability: in standard deviations over all models of the table.
    """

    backbone: str
    method: str | None
    seed: int | None
    source: str | None
    ability: float

    @property
    def name(self) -> str:
        """In words: `lwf on digits-a`."""
        if self.method is None:
            return f"{self.backbone}, untouched"
        return f"{self.method} on {self.source}"


@dataclass(frozen=True)
class Member:
    """How well one dataset tells the models apart.

    Args:
        name: of the dataset.
        role: `"ood"` or `"reference"`.
        photographs: how many it has, of which `read` were read, one image of each.
        models: that were asked: not those that were trained on it or on its photographs.
        right: share of right answers among what was read, in %.
        curves: of its images.
        information: of one image, the mean over the abilities of all models.
        headroom: slope of an image's curve at the best model; the paper's LEH.
    """

    name: str
    role: str
    photographs: int
    read: int
    models: int
    right: float
    curves: Curves
    information: float
    headroom: float

    @property
    def error(self) -> float:
        """Standard error of an ability that is measured on all its photographs and nothing else."""
        return float((self.photographs * self.information) ** -0.5)


@dataclass(frozen=True)
class Told:
    """Models that answered the same images, and the datasets by what they say of them.

    Args:
        setting: suite and what of the images is not as usual.
        models: the ablest first.
        members: the most telling first.
        notes: what was left out, and why.
    """

    setting: str
    models: tuple[Model, ...]
    members: tuple[Member, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As `compare --irt --format json` prints it."""
        return {
            "format": FORMAT,
            "setting": self.setting,
            "models": [
                {"backbone": one.backbone, "method": one.method, "seed": one.seed,
                 "source": one.source, "ability": one.ability}
                for one in self.models
            ],
            "members": self.rows(),
            "notes": list(self.notes),
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """A row a dataset, for CSV and data frames."""
        return [
            {
                "setting": self.setting,
                "dataset": one.name,
                "role": one.role,
                "photographs": one.photographs,
                "read": one.read,
                "models": one.models,
                "right": one.right,
                "discrimination": one.curves.discrimination.estimate,
                "discrimination_low": one.curves.discrimination.low,
                "discrimination_high": one.curves.discrimination.high,
                "easiness": one.curves.easiness,
                "spread": one.curves.spread,
                "information": one.information,
                "error": one.error,
                "headroom": one.headroom,
            }
            for one in self.members
        ]


#: Backbone, method, seed and source of a model.
_Who = tuple[str, str | None, int | None, str | None]

#: What models share that answered the same images.
SAME = ("suite", "limit", "data", "members", "references", "shares")


def tell_apart(arms: Iterable[Arm], store: Store) -> list[Told]:
    """Which datasets tell the models of a store apart, for those together that share the images.

    A model is not asked about its own fine-tuning set, nor about a set that is made from the same
    photographs; one that its fine-tuning ruined is left out.

    Args:
        arms: those of trials are left out: a method with eight settings would outvote the others.
        store: where their scores are.

    Raises:
        InapplicableError: there are too few models.
    """
    groups: dict[str, list[RunResult]] = {}
    for arm in arms:
        for run in () if arm.record.get("trial_of") else arm.runs:
            images = {
                name: inputs["dataset"]
                for name, key in run.record["cells"]["pre"].items()
                if (inputs := store.inputs(key)) is not None
            }
            shared = [run.record.get(part) for part in SAME]
            key = json.dumps([*shared, images], sort_keys=True)
            groups.setdefault(key, []).append(run)
    found, problem = [], None
    for runs in groups.values():
        try:
            found.append(_told(runs, store))
        except InapplicableError as error:  # of other images there may be enough
            problem = error
    if not found:
        raise problem or InapplicableError("There is nothing to compare: no run was chosen.")
    return found


def _told(runs: Sequence[RunResult], store: Store) -> Told:
    models, cells, notes = _models_of(runs)
    record, matrix = runs[0].record, runs[0].matrix
    answers, asked = [], []
    for name in (*matrix.members, *matrix.references):
        which = [k for k in range(len(models)) if name in cells[k]]
        if len(which) < 2:
            notes.append(f"{name} is left out: {len(which)} of these models answered it")
            continue
        keys = [cells[k][name] for k in which]
        photograph = photographs(store, keys[0])
        rows = _drawn(name, photograph)
        right = np.stack([right_rows(store, key)[rows] for key in keys], axis=1)
        answers.append(Answers(right, np.array(which)))
        asked.append((name, int(photograph.max(initial=-1)) + 1))
    abilities, curves = fit(answers)
    members = [
        Member(
            name,
            "reference" if name in matrix.references else "ood",
            count,
            len(one.right),
            len(one.models),
            100 * float(one.right.mean()),
            curve,
            curve.information(abilities),
            curve.slope_at(float(abilities.max())),
        )
        for (name, count), one, curve in zip(asked, answers, curves, strict=True)
    ]
    setting = str(record["suite"])
    setting += f" · limit {record['limit']} a class" if record["limit"] is not None else ""
    ranked = sorted(zip(models, abilities.tolist(), strict=True), key=lambda one: -one[1])
    return Told(
        setting,
        tuple(Model(*model, ability) for model, ability in ranked),
        tuple(sorted(members, key=lambda one: -one.information)),
        tuple(notes),
    )


def _models_of(runs: Sequence[RunResult]) -> tuple[list[_Who], list[dict[str, str]], list[str]]:
    """Each model, dataset → key of its scores where it is asked, and what is left out."""
    found: list[_Who] = []
    cells: list[dict[str, str]] = []
    ruined = []
    for run in runs:
        record, matrix = run.record, run.matrix
        for source, row in [(None, matrix.pre), *matrix.post.items()]:
            if source in matrix.ruined:
                ruined.append(f"{run.method} on {source}")
                continue
            keys = record["cells"]["pre"] if source is None else record["cells"]["post"][source]
            own = {
                name: str(keys[name])
                for name in row
                if source is None or (name != source and not matrix.shared(source, name))
            }
            if not own or own in cells:  # the untouched backbone is in each of its runs
                continue
            cells.append(own)
            whose = (None, None) if source is None else (run.method, record["seed"])
            found.append((record["backbone"], *whose, source))
    return found, cells, [f"left out, ruined: {', '.join(ruined)}"] if ruined else []


def _drawn(name: str, photograph: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows to read: one of each photograph, drawn by a fixed order, `IMAGES` at most."""
    digest = hashlib.sha256(f"irt/{name}/{len(photograph)}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(digest[:16], "little")).permutation(
        len(photograph)
    )
    _, first = np.unique(photograph[order], return_index=True)
    return np.sort(order[np.sort(first)[:IMAGES]])
