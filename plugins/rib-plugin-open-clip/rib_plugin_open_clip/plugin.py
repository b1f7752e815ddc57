"""What this distribution offers. Light: nothing here imports torch or open_clip."""

from rib_harness import BackboneSpec, LabelSpace, Variant, hookimpl

RIB_PLUGIN_API = 1

#: Pretraining → how many images that is: arXiv:2103.00020; arXiv:2210.08402; arXiv:2304.14108.
_IMAGES = {
    "OpenAI (CLIP)": 400_000_000,
    "LAION-2B (CLIP)": 2_320_000_000,
    "DataComp-1B (CLIP)": 1_400_000_000,
}

_SETS = ("imagenet", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch")

_SOURCE = "open_clip, docs/openclip_results.csv at f862f86 (zero-shot, 80 templates)"

#: Tag, pretraining, and top-1 accuracy in % on `_SETS`, with the option templates=openai-80.
#: ObjectNet is not here: its table names the classes in ObjectNet's words, not in ImageNet's.
_MEMBERS = (
    ("ViT-B-32/openai", "OpenAI (CLIP)", 63.32, 55.92, 31.55, 69.33, 42.29),
    ("ViT-B-16/openai", "OpenAI (CLIP)", 68.34, 61.88, 49.95, 77.70, 48.24),
    ("ViT-L-14/openai", "OpenAI (CLIP)", 75.54, 69.83, 70.75, 87.84, 59.59),
    ("ViT-B-32/laion2b_s34b_b79k", "LAION-2B (CLIP)", 66.56, 58.14, 26.27, 76.43, 53.66),
    ("ViT-B-16/laion2b_s34b_b88k", "LAION-2B (CLIP)", 70.23, 62.28, 38.23, 80.61, 56.08),
    ("ViT-L-14/laion2b_s32b_b82k", "LAION-2B (CLIP)", 75.25, 67.80, 53.85, 87.42, 63.28),
    ("ViT-H-14/laion2b_s32b_b79k", "LAION-2B (CLIP)", 77.96, 70.90, 59.35, 89.34, 66.57),
    ("ViT-B-16/datacomp_xl_s13b_b90k", "DataComp-1B (CLIP)", 73.49, 65.98, 48.40, 83.62, 60.44),
)


@hookimpl
def register_backbones() -> list[BackboneSpec]:
    """The family of all open_clip models, with a zero-shot head over ImageNet-1k."""
    return [
        BackboneSpec(
            name="open-clip",
            target="rib_plugin_open_clip.backbone:OpenClipBackbone",
            summary="A CLIP image tower with a zero-shot head: open-clip:MODEL/PRETRAINED.",
            citation="arXiv:2103.00020; https://github.com/mlfoundations/open_clip",
            license="MIT for open_clip; each tag's weights have their own",
            label_space=LabelSpace("imagenet-1k", 1000),
            pretraining="image-text pairs, as the tag says",
            network=True,
            family=True,
            variants=tuple(
                Variant(
                    tag=tag,
                    pretraining=pretraining,
                    pretraining_images=_IMAGES[pretraining],
                    accuracy=dict(zip(_SETS, accuracies, strict=True)),
                    source=_SOURCE,
                    has=("blocks", "text-tower", "projection"),
                )
                for tag, pretraining, *accuracies in _MEMBERS
            ),
        )
    ]
