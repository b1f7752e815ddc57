"""What this distribution offers. Light: nothing here imports torch or torchvision."""

from rib_harness import BackboneSpec, LabelSpace, Variant, hookimpl

RIB_PLUGIN_API = 1

#: How a tag begins → parts that methods may require; its identity finds them in the model.
_HAS = {"vit_": ("blocks",), "resnet": ("batch-norm",)}

#: Weights trained on ImageNet-1k alone → top-1 accuracy in % on its validation set, as torchvision
#: publishes it in `meta["_metrics"]`. Those called SWAG saw other images first and are not here.
_ACCURACY = {
    "convnext_base.IMAGENET1K_V1": 84.062,
    "convnext_large.IMAGENET1K_V1": 84.414,
    "convnext_small.IMAGENET1K_V1": 83.616,
    "convnext_tiny.IMAGENET1K_V1": 82.520,
    "densenet121.IMAGENET1K_V1": 74.434,
    "efficientnet_b0.IMAGENET1K_V1": 77.692,
    "mobilenet_v2.IMAGENET1K_V1": 71.878,
    "mobilenet_v2.IMAGENET1K_V2": 72.154,
    "regnet_y_400mf.IMAGENET1K_V1": 74.046,
    "regnet_y_400mf.IMAGENET1K_V2": 75.804,
    "resnet18.IMAGENET1K_V1": 69.758,
    "resnet34.IMAGENET1K_V1": 73.314,
    "resnet50.IMAGENET1K_V1": 76.130,
    "resnet50.IMAGENET1K_V2": 80.858,
    "resnet101.IMAGENET1K_V1": 77.374,
    "resnet101.IMAGENET1K_V2": 81.886,
    "resnet152.IMAGENET1K_V1": 78.312,
    "resnet152.IMAGENET1K_V2": 82.284,
    "swin_b.IMAGENET1K_V1": 83.582,
    "swin_s.IMAGENET1K_V1": 83.196,
    "swin_t.IMAGENET1K_V1": 81.474,
    "vit_b_16.IMAGENET1K_V1": 81.072,
    "vit_b_32.IMAGENET1K_V1": 75.912,
    "vit_l_16.IMAGENET1K_V1": 79.662,
}


@hookimpl
def register_backbones() -> list[BackboneSpec]:
    """The family of all torchvision classifiers over ImageNet-1k."""
    return [
        BackboneSpec(
            name="torchvision",
            target="rib_plugin_torchvision.backbone:TorchvisionBackbone",
            summary="Any torchvision classifier: torchvision:NAME.WEIGHTS, or with weights=FILE.",
            citation="https://github.com/pytorch/vision",
            license="BSD-3-Clause for torchvision; SWAG weights are CC-BY-NC-4.0",
            label_space=LabelSpace("imagenet-1k", 1000),
            pretraining="as the weights' name says",
            network=True,
            family=True,
            variants=tuple(
                Variant(
                    tag=tag,
                    pretraining="IN-1K",
                    pretraining_images=1_281_167,
                    accuracy={"imagenet": accuracy},
                    source="torchvision's weights, meta._metrics",
                    has=next((has for start, has in _HAS.items() if tag.startswith(start)), ()),
                )
                for tag, accuracy in _ACCURACY.items()
            ),
        )
    ]
