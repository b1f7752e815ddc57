"""What this distribution offers. Light: nothing here imports torch or timm."""

from rib_harness import BackboneSpec, LabelSpace, hookimpl

RIB_PLUGIN_API = 1


@hookimpl
def register_backbones() -> list[BackboneSpec]:
    """The family of all timm tags over ImageNet-1k."""
    return [
        BackboneSpec(
            name="timm",
            target="rib_plugin_timm.backbone:TimmBackbone",
            summary="Any timm classifier: timm:TAG, or with weights=FILE.",
            citation="https://github.com/huggingface/pytorch-image-models",
            license="Apache-2.0 for timm; each tag's weights have their own",
            label_space=LabelSpace("imagenet-1k", 1000),
            pretraining="as the tag says",
            network=True,
            family=True,
        )
    ]
