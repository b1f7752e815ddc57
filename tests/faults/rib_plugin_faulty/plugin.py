"""What it offers. Light: nothing here imports torch or NumPy."""

from rib_harness import (
    BackboneSpec,
    DatasetSpec,
    LabelSpace,
    MethodSpec,
    MetricSpec,
    SuiteSpec,
    hookimpl,
)

RIB_PLUGIN_API = 1

SPACE = LabelSpace("faulty-4", 4)


@hookimpl
def register_datasets() -> list[DatasetSpec]:
    """One in folders, one in a tar, one without files."""
    return [
        DatasetSpec(
            name=name,
            target=f"rib_plugin_faulty.parts:{target}",
            arguments=arguments,
            summary="Made-up pictures.",
            label_space=SPACE,
            role=role,
        )
        for name, target, arguments, role in (
            ("fold", "OfFiles", {"file": "fold"}, "shifted"),
            ("tarred", "OfFiles", {"file": "tarred.tar"}, "shifted"),
            ("made", "Made", {}, "reference"),
        )
    ]


@hookimpl
def register_backbones() -> list[BackboneSpec]:
    """A net of one convolution, whose weights are a file."""
    return [
        BackboneSpec(
            name="small",
            target="rib_plugin_faulty.parts:Small",
            summary="One convolution.",
            label_space=SPACE,
            input_size=8,
        )
    ]


@hookimpl
def register_methods() -> list[MethodSpec]:
    """Fine-tuning that does something else besides."""
    return [
        MethodSpec(
            name="faulty", target="rib_plugin_faulty.parts:Faulty", summary="Does what it is told."
        )
    ]


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """An accuracy that does something else besides."""
    return [
        MetricSpec(
            name="faulty",
            target="rib_plugin_faulty.parts:metric",
            summary="Does what it is told.",
            level="scores",
        )
    ]


@hookimpl
def register_suites() -> list[SuiteSpec]:
    """Two members and a reference."""
    return [
        SuiteSpec(
            name="faulty",
            summary="Made-up pictures.",
            label_space=SPACE,
            members=("fold", "tarred"),
            references=("made",),
            backbone="small",
            recipe={"lr": 0.05, "batch_size": 6, "epochs": 2},
        )
    ]
