"""What this distribution offers. Light: nothing here imports torch, NumPy or SciPy."""

from typing import Any, Literal

from rib_harness import MetricSpec, hookimpl

RIB_PLUGIN_API = 1

PAPER = "arXiv:2410.21582"

_INFINITY = float("inf")
_PERCENT: dict[str, Any] = {"range": (0.0, 100.0), "unit": "%"}
_POINTS: dict[str, Any] = {"range": (-100.0, 100.0), "unit": "points"}
_LESS: dict[str, Any] = {"range": (0.0, _INFINITY), "higher_is_better": False}

Level = Literal["scores", "matrix", "drift", "distance"]


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """By what they are made from."""
    return [*_from_scores(), *_from_matrix(), *_of_drift(), *_of_distance()]


def _metric(
    level: Level, name: str, target: str, summary: str, citation: str, **facts: Any
) -> MetricSpec:
    return MetricSpec(
        name=name,
        target=f"rib_plugin_metrics.{target}",
        summary=summary,
        citation=citation,
        license="Apache-2.0",
        level=level,
        **facts,
    )


def _from_scores() -> list[MetricSpec]:
    return [
        _metric(
            "scores", "top-1", "scores:top1",
            "Accuracy; over groups, the mean over corruptions and severities.",
            "arXiv:1409.0575", **_PERCENT,
        ),
        _metric(
            "scores", "top-5", "scores:top5",
            "Share of images whose label is among the five highest logits; averaged as top-1.",
            "arXiv:1409.0575", **_PERCENT,
        ),
        _metric(
            "scores", "ece", "scores:ece",
            "Expected calibration error of the top label, 15 equal-width bins.",
            "arXiv:1706.04599", range=(0.0, 1.0), higher_is_better=False,
        ),
        _metric(
            "scores", "nll", "scores:nll",
            "Mean negative log-likelihood of the label, in nats.",
            "arXiv:1706.04599", **_LESS,
        ),
        _metric(
            "scores", "brier", "scores:brier",
            "Mean squared error of the probabilities, summed over classes.",
            "Brier, 1950", range=(0.0, 2.0), higher_is_better=False,
        ),
        _metric(
            "scores", "mce", "corruptions:mce",
            "Mean corruption error on ImageNet-C, relative to AlexNet's.",
            "arXiv:1903.12261", unit="%", **_LESS,
        ),
    ]  # fmt: skip


def _from_matrix() -> list[MetricSpec]:
    return [
        _metric(
            "matrix", "ri", "matrix:ri",
            "Mean change on the other members, for each source.", PAPER, **_POINTS,
        ),
        _metric(
            "matrix", "mri", "matrix:mri",
            "Mean of RI over the sources.", PAPER, **_POINTS,
        ),
        _metric(
            "matrix", "mri-unshared", "matrix:mri_unshared",
            "mRI without the pairs made from the same photographs.", PAPER, **_POINTS,
        ),
        _metric(
            "matrix", "mean-ood-accuracy", "matrix:mean_ood_accuracy",
            "Mean accuracy on the other members after fine-tuning.", PAPER, **_PERCENT,
        ),
        _metric(
            "matrix", "gain", "matrix:gain",
            "Mean change on the fine-tuning set; on held-out images if a recipe keeps some.",
            PAPER, **_POINTS,
        ),
        _metric(
            "matrix", "forgetting", "matrix:forgetting",
            "Mean loss of accuracy on the reference sets.",
            PAPER, higher_is_better=False, **_POINTS,
        ),
        _metric(
            "matrix", "forgetting-unshared", "matrix:forgetting_unshared",
            "Forgetting without the sources made from the reference's own photographs.",
            PAPER, higher_is_better=False, **_POINTS,
        ),
        _metric(
            "matrix", "relative-robustness", "matrix:relative_robustness",
            "Change of accuracy on each other member, for each source.",
            "arXiv:2007.00644", **_POINTS,
        ),
        _metric(
            "matrix", "effective-robustness", "effective:effective_robustness",
            "Accuracy on V2, Sketch and R after fine-tuning beyond what ImageNet's predicts.",
            "arXiv:2007.00644", **_POINTS,
        ),
        _metric(
            "matrix", "effective-robustness-multi-id", "effective:effective_robustness_multi_id",
            "Accuracy after fine-tuning beyond what several references predict, by your models.",
            "arXiv:2302.01381", **_POINTS,
        ),
        _metric(
            "matrix", "relative-mce", "corruptions:relative_mce",
            "Corruption error beyond the clean error, relative to AlexNet's, after fine-tuning.",
            "arXiv:1903.12261", unit="%", higher_is_better=False,
        ),
    ]  # fmt: skip


def _of_drift() -> list[MetricSpec]:
    return [
        _metric(
            "drift", "cka", "cka:cka",
            "Debiased linear CKA between features before and after; 1 is alike.",
            "arXiv:2010.15327", range=(-1.0, 1.0),
        ),
        _metric(
            "drift", "feature-drift", "drift:feature_drift",
            "Mean 1 − cos between features before and after.",
            "Salton & McGill, 1983", range=(0.0, 2.0), higher_is_better=False,
        ),
        _metric(
            "drift", "logit-kl", "drift:logit_kl",
            "Mean KL divergence of the probabilities after from those before, in nats.",
            "Kullback & Leibler, 1951", **_LESS,
        ),
        _metric(
            "drift", "weight-drift", "drift:weight_drift",
            "Distance of the parameters from their start, relative to its norm.",
            "arXiv:1802.01483", **_LESS,
        ),
    ]  # fmt: skip


def _of_distance() -> list[MetricSpec]:
    return [
        _metric(
            "distance", "otdd", "otdd:otdd",
            "Optimal transport dataset distance: images and classes, debiased Sinkhorn.",
            "arXiv:2002.02923", higher_is_better=False,
        ),
        _metric(
            "distance", "frechet", "gaussians:frechet",
            "Fréchet distance between the Gaussians of the features (squared, as FID).",
            "arXiv:1706.08500", **_LESS,
        ),
        _metric(
            "distance", "nearest-class-mean", "distance:nearest_class_mean",
            "Accuracy of the fine-tuning set's class means on the other set's images.",
            "Mensink et al., TPAMI 2013", **_PERCENT,
        ),
        _metric(
            "distance", "mmd", "distance:mmd",
            "Squared maximum mean discrepancy, Gaussian kernel, median bandwidth.",
            "arXiv:0805.2368", range=(-2.0, 2.0), higher_is_better=False,
        ),
    ]  # fmt: skip
