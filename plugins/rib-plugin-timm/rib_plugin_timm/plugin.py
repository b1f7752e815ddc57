"""What this distribution offers. Light: nothing here imports torch or timm."""

from __future__ import annotations

from importlib.resources import files

from rib_harness import BackboneSpec, LabelSpace, Variant, hookimpl

RIB_PLUGIN_API = 1

#: How a tag begins → parts that methods may require; its identity finds them in the model.
_HAS = {"vit_": ("blocks", "qkv"), "deit_": ("blocks", "qkv"), "resnet": ("batch-norm",)}


def variants() -> tuple[Variant, ...]:
    """What `known.tsv` says of timm's members."""
    text = files("rib_plugin_timm").joinpath("known.tsv").read_text(encoding="utf-8")
    header, *rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    made = []
    for row in rows:
        tag, alias, pretraining, images = row[:4]
        made.append(
            Variant(
                tag=tag,
                alias="" if alias == "-" else alias,
                pretraining=pretraining,
                pretraining_images=int(images),
                accuracy={
                    dataset: float(value)
                    for dataset, value in zip(header[4:], row[4:], strict=True)
                    if value != "-"
                },
                source="timm's result tables",
                has=next((has for start, has in _HAS.items() if tag.startswith(start)), ()),
            )
        )
    return tuple(made)


@hookimpl
def register_backbones() -> list[BackboneSpec]:
    """The family of all timm tags over ImageNet-1k, with the paper's names for some."""
    return [
        BackboneSpec(
            name="timm",
            target="rib_plugin_timm.backbone:TimmBackbone",
            summary="Any timm classifier: timm:TAG, or with weights=FILE.",
            citation="https://github.com/huggingface/pytorch-image-models",
            license="Apache-2.0 for timm; each tag's weights have their own",
            label_space=LabelSpace("imagenet-1k", 1000),
            pretraining="as the tag says",
            variants=variants(),
            network=True,
            family=True,
        )
    ]
