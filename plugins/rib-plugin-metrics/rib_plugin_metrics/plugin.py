"""What this distribution offers. Light: nothing here imports torch."""

from rib_harness import MetricSpec, hookimpl

RIB_PLUGIN_API = 1

PAPER = "arXiv:2410.21582"


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """One from scores, the others from a matrix."""
    points = (-100.0, 100.0)
    return [
        MetricSpec(
            name="top-1",
            target="rib_plugin_metrics.scores:top1",
            summary="Accuracy; over groups, the mean over corruptions and severities.",
            citation="arXiv:1409.0575",
            license="Apache-2.0",
            level="scores",
            range=(0.0, 100.0),
            unit="%",
        ),
        MetricSpec(
            name="ri",
            target="rib_plugin_metrics.matrix:ri",
            summary="Mean change on the other members, for each source.",
            citation=PAPER,
            license="Apache-2.0",
            level="matrix",
            range=points,
            unit="points",
        ),
        MetricSpec(
            name="mri",
            target="rib_plugin_metrics.matrix:mri",
            summary="Mean of RI over the sources.",
            citation=PAPER,
            license="Apache-2.0",
            level="matrix",
            range=points,
            unit="points",
        ),
        MetricSpec(
            name="mean-ood-accuracy",
            target="rib_plugin_metrics.matrix:mean_ood_accuracy",
            summary="Mean accuracy on the other members after fine-tuning.",
            citation=PAPER,
            license="Apache-2.0",
            level="matrix",
            range=(0.0, 100.0),
            unit="%",
        ),
        MetricSpec(
            name="gain",
            target="rib_plugin_metrics.matrix:gain",
            summary="Mean change on the fine-tuning set itself (training accuracy).",
            citation=PAPER,
            license="Apache-2.0",
            level="matrix",
            range=points,
            unit="points",
        ),
        MetricSpec(
            name="forgetting",
            target="rib_plugin_metrics.matrix:forgetting",
            summary="Mean loss of accuracy on the reference sets.",
            citation=PAPER,
            license="Apache-2.0",
            level="matrix",
            higher_is_better=False,
            range=points,
            unit="points",
        ),
    ]
