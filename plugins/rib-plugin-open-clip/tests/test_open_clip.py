"""CLIP towers with a zero-shot head, from local files. Expected values: open_clip's own model,
its own zero-shot classifier and transforms, and loops over the formula.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torchvision.models
from PIL import Image
from rib_plugin_open_clip import backbone as module
from rib_plugin_open_clip import head as head_module
from rib_plugin_open_clip.backbone import OpenClipBackbone
from rib_plugin_open_clip.plugin import register_backbones
from safetensors.torch import save_file
from torch.nn import functional as F

from rib_harness import ConfigError, DataError
from rib_harness.catalog import load_catalog
from rib_harness.engine.data import Normalizer
from rib_harness.identify import identity_of

VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
PLAIN: dict[str, Any] = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}

#: Small models of several kinds: CLIP; with a text tower of its own and a bias (SigLIP's loss);
#: CoCa, whose image tower gives tokens too; with a timm tower.
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": PLAIN,
    "tiny-bias": {**PLAIN, "custom_text": True, "init_logit_bias": -7.5},
    "tiny-coca": {
        "embed_dim": 12,
        "custom_text": True,
        "vision_cfg": {
            **VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True,
        },
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {
            "context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1,
            "dim_head": 8, "n_queries": 4, "attn_pooler_heads": 2,
        },
    },
    "tiny-timm": {
        **PLAIN, "vision_cfg": {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": ""},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No test finds the head that another one made."""
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "zero-shot-heads"


def make(folder: Path, name: str) -> tuple[Any, dict[str, Path]]:
    """open_clip's own model with random weights, and the options that make ours of it."""
    config, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    config.write_text(json.dumps(CONFIGS[name]))
    open_clip.add_model_config(config)
    torch.manual_seed(1)
    model = open_clip.create_model(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that nothing is at a special value
            # CoCa leaves one as the memory was.
            parameter.copy_(torch.where(parameter.abs() < 100, parameter, 0.0))
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(3.1)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    return model, {"weights": weights, "config": config}


@pytest.fixture(scope="module")
def tiny(folder: Path) -> tuple[Any, dict[str, Path]]:
    return make(folder, "tiny")


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_clips_on_a_picture_to_float_tolerance(folder: Path, name: str) -> None:
    model, options = make(folder, name)
    backbone = OpenClipBackbone(name, templates="one", **options)
    classifier, preprocess = backbone.build(), backbone.identity().preprocess
    assert preprocess == classifier.preprocess
    _, _, transform = open_clip.create_model_and_transforms(name)
    shots = [picture(311, 190), picture(57, 203)]
    pixels = torch.from_numpy(np.stack([preprocess.pixels(shot) for shot in shots]))
    images = Normalizer(preprocess)(pixels)
    for image, shot in zip(images, shots, strict=True):
        assert torch.equal(image, transform(shot))
    texts = open_clip.get_tokenizer(name)(
        [f"a photo of a {one}." for one in open_clip.IMAGENET_CLASSNAMES]
    )
    with torch.no_grad():
        expected = (
            model.logit_scale.exp()
            * model.encode_image(images, normalize=True)
            @ model.encode_text(texts, normalize=True).T
        )
        if name == "tiny-bias":
            expected += model.logit_bias
        torch.testing.assert_close(classifier(images), expected, rtol=1e-4, atol=1e-4)
        features = classifier.features(images)
        torch.testing.assert_close(features, model.encode_image(images, normalize=True))
    assert classifier(images).shape == (2, 1000)
    # The classes differ, and so do the pictures: the comparison is no comparison of constants.
    assert expected.std(dim=1).min() > 0.01
    assert (expected[0] - expected[1]).abs().max() > 0.01


def test_the_logits_are_those_of_clips_own_forward(tiny: Any) -> None:
    """`model(image, text)`, the call that open_clip's users make."""
    model, options = tiny
    classifier = OpenClipBackbone("tiny", templates="one", **options).build()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    texts = open_clip.get_tokenizer("tiny")(["a photo of a tench.", "a photo of a toilet paper."])
    assert open_clip.IMAGENET_CLASSNAMES[999] == "toilet paper"
    with torch.no_grad():
        image_features, text_features, scale = model(images, texts)
        expected = scale * image_features @ text_features.T
        torch.testing.assert_close(classifier(images)[:, [0, 999]], expected, rtol=1e-4, atol=1e-4)


def test_the_head_is_open_clips_zero_shot_classifier(tiny: Any) -> None:
    model, options = tiny
    head = OpenClipBackbone("tiny", templates="simple-7", **options).build().head
    tokenizer = open_clip.get_tokenizer("tiny")
    names, templates = open_clip.IMAGENET_CLASSNAMES, open_clip.SIMPLE_IMAGENET_TEMPLATES
    whole = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)
    scale = model.logit_scale.exp().item()
    torch.testing.assert_close(head.weight.T, scale * whole, rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # the formula, for one class
        each = [
            F.normalize(model.encode_text(tokenizer([template(names[417])]))[0], dim=0)
            for template in templates
        ]
        mean = torch.stack(each).mean(0)
        torch.testing.assert_close(head.weight[417], scale * mean / mean.norm(),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip


def test_the_prompts_are_openais_80_where_nothing_else_is_said(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options = tiny
    names = ("tench", "goldfish", "toilet paper")
    monkeypatch.setattr(head_module, "NAMES", names)
    monkeypatch.setattr(module, "NAMES", names)
    head = OpenClipBackbone("tiny", **options).build().head
    expected = open_clip.build_zero_shot_classifier_legacy(
        model, open_clip.get_tokenizer("tiny"), names, open_clip.OPENAI_IMAGENET_TEMPLATES
    )
    scale = model.logit_scale.exp().item()
    torch.testing.assert_close(head.weight.T, scale * expected, rtol=1e-4, atol=1e-4)
    assert [len(head_module.TEMPLATES[name]) for name in head_module.TEMPLATES] == [80, 7, 1]


def test_the_class_names_are_in_the_order_of_imagenets_ids() -> None:
    """torchvision lists the same classes in other words; most are spelled alike."""
    theirs = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    same = [a.lower() == b.lower() for a, b in zip(head_module.NAMES, theirs, strict=True)]
    assert len(same) == 1000
    assert sum(same) > 600


class TestTheCacheOfHeads:
    @pytest.fixture
    def runs(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
        """Grows by one whenever the text tower makes a head."""
        seen: list[int] = []
        original = open_clip.build_zero_shot_classifier

        def counted(model: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(1)
            assert not model.training
            return original(model, *args, **kwargs)

        monkeypatch.setattr(open_clip, "build_zero_shot_classifier", counted)
        yield seen

    def test_a_second_build_does_not_run_the_text_tower(
        self, tiny: Any, runs: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backbone = OpenClipBackbone("tiny", templates="one", **tiny[1])
        first = backbone.build()
        monkeypatch.setattr(open_clip.CLIP, "encode_text", None)
        monkeypatch.setattr(open_clip, "get_tokenizer", None)
        second = OpenClipBackbone("tiny", templates="one", **tiny[1]).build()
        assert len(runs) == 1
        assert first.fingerprint() == second.fingerprint()

    @pytest.mark.parametrize("damage", ["cut", "bit", "shape", "empty"])
    def test_a_damaged_file_is_made_again(
        self, tiny: Any, runs: list[int], own_cache: Path, damage: str
    ) -> None:
        backbone = OpenClipBackbone("tiny", templates="one", **tiny[1])
        first = backbone.build()
        [file] = own_cache.iterdir()
        data = bytearray(file.read_bytes())
        if damage == "cut":
            file.write_bytes(data[:-100])
        elif damage == "bit":
            data[-100] ^= 1
            file.write_bytes(data)
        elif damage == "shape":
            other = torch.zeros(3, 12)  # whole, but of other classes
            digest = hashlib.sha256(other.numpy().tobytes()).hexdigest()
            save_file({"embeddings": other}, file, {"sha256": digest})
        else:
            file.write_bytes(b"")
        assert backbone.build().fingerprint() == first.fingerprint()
        assert len(runs) == 2
        backbone.build()
        assert len(runs) == 2  # the file is whole again

    def test_another_template_or_weights_or_activation_gives_another_file(
        self, tiny: Any, own_cache: Path, tmp_path: Path, runs: list[int]
    ) -> None:
        model, options = tiny
        OpenClipBackbone("tiny", templates="one", **options).build()
        OpenClipBackbone("tiny", templates="simple-7", **options).build()
        assert len(list(own_cache.iterdir())) == 2
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        state["ln_final.bias"] = state["ln_final.bias"] + 1
        save_file(state, tmp_path / "other.safetensors")
        other = {**options, "weights": tmp_path / "other.safetensors"}
        OpenClipBackbone("tiny", templates="one", **other).build()
        assert len(list(own_cache.iterdir())) == 3
        (tmp_path / "tiny.json").write_text(json.dumps({**PLAIN, "quick_gelu": True}))
        quick = {**options, "config": tmp_path / "tiny.json"}
        OpenClipBackbone("tiny", templates="one", **quick).build()
        assert len(list(own_cache.iterdir())) == len(runs) == 4

    def test_one_that_cannot_be_written_stops_nothing(
        self, tiny: Any, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(path: Path, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(head_module, "write_atomically", full)
        OpenClipBackbone("tiny", templates="one", **tiny[1]).build()
        assert not list(own_cache.iterdir())


def test_the_text_tower_is_no_part_of_the_classifier(tiny: Any) -> None:
    model, options = tiny
    classifier = OpenClipBackbone("tiny", templates="one", **options).build()
    expected = {f"encoder.visual.{name}" for name in model.visual.state_dict()} | {"head.weight"}
    assert set(classifier.state_dict()) == expected
    assert not classifier.training
    copy = classifier.copy()
    copy(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in copy.parameters())


def test_a_tower_that_is_not_all_of_encode_image_is_refused(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode_image(self: Any, image: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        return F.normalize(self.visual(image).relu(), dim=-1)

    monkeypatch.setattr(open_clip.CLIP, "encode_image", encode_image)
    with pytest.raises(ConfigError, match="its image features change without the text tower"):
        OpenClipBackbone("tiny", templates="one", **tiny[1]).build()


def test_a_tokenizer_that_cannot_be_had_is_told(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of some text towers are on the hub."""

    def get_tokenizer(name: str) -> Any:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(open_clip, "get_tokenizer", get_tokenizer)
    with pytest.raises(DataError, match=r"open-clip:tiny: its tokenizer could not be had \(OSErr"):
        OpenClipBackbone("tiny", templates="one", **tiny[1]).build()


def test_building_moves_no_global_generator(tiny: Any) -> None:
    state = torch.random.get_rng_state()
    OpenClipBackbone("tiny", templates="one", **tiny[1]).build()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_identity_is_cheap_and_tells_weights_prompts_and_configuration_apart(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, options = tiny
    monkeypatch.setattr(open_clip, "build_zero_shot_classifier", None)
    monkeypatch.setattr(open_clip.CLIP, "encode_text", None)
    identity = OpenClipBackbone("tiny", **options).identity()
    digest = hashlib.sha256(options["weights"].read_bytes()).hexdigest()
    assert identity.weights.startswith(f"sha256:{digest}+")
    assert identity.classes == 1000
    assert identity.files == (str(options["weights"]), str(options["config"]))
    seen = {
        identity.weights,
        OpenClipBackbone("tiny", templates="one", **options).identity().weights,
    }
    (tmp_path / "tiny.json").write_text(json.dumps({**PLAIN, "quick_gelu": True}))
    quick = {**options, "config": tmp_path / "tiny.json"}
    seen.add(OpenClipBackbone("tiny", **quick).identity().weights)
    monkeypatch.setattr(head_module, "NAMES", ("tinca tinca", *head_module.NAMES[1:]))
    seen.add(OpenClipBackbone("tiny", **options).identity().weights)
    assert len(seen) == 4


@pytest.mark.parametrize("shape", ["state_dict", "module", "bare"])
def test_training_checkpoints_are_read(tiny: Any, tmp_path: Path, shape: str) -> None:
    """As open_clip_train writes them: {"epoch", "name", "state_dict"}, with module. before names
    where several devices trained.
    """
    model, options = tiny
    state: Any = model.state_dict()
    if shape == "module":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    if shape != "bare":
        state = {"epoch": 3, "name": "mine", "state_dict": state, "optimizer": {"lr": 0.1}}
    torch.save(state, tmp_path / "epoch_3.pt")
    given = {**options, "weights": tmp_path / "epoch_3.pt"}
    built = OpenClipBackbone("tiny", templates="one", **given).build()
    for name, tensor in model.visual.state_dict().items():
        assert torch.equal(built.encoder.visual.state_dict()[name], tensor)


def test_what_open_clip_would_guess_or_refuse_is_asked_or_read(tiny: Any, tmp_path: Path) -> None:
    """It takes `state_dict` in silence, and knows of no prefix but `module.`."""
    model, options = tiny
    state = model.state_dict()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    compiled = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    given = {**options, "weights": tmp_path / "w.pt", "templates": "one"}
    torch.save(
        {"state_dict": zeros, "state_dict_ema": compiled, "args": Namespace()}, given["weights"]
    )
    with pytest.raises(DataError, match=r"'state_dict'.*'state_dict_ema'.*weights_key="):
        OpenClipBackbone("tiny", **given).identity()
    backbone = OpenClipBackbone("tiny", weights_key="state_dict_ema", **given)
    assert "state_dict_ema" in backbone.identity().notes[0]
    for name, tensor in model.visual.state_dict().items():
        assert torch.equal(backbone.build().encoder.visual.state_dict()[name], tensor)


def test_code_in_a_checkpoint_is_never_run(tiny: Any, tmp_path: Path) -> None:
    marker = tmp_path / "owned"

    class Malicious:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Malicious()}, protocol=2))
    torch.save({"state_dict": {"logit_scale": Malicious()}}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        backbone = OpenClipBackbone("tiny", **{**tiny[1], "weights": tmp_path / name})
        for step in (backbone.identity, backbone.build):
            with pytest.raises(DataError, match=r"code in it is not run"):
                step()
    assert not marker.exists()


def test_a_missing_damaged_or_foreign_file_is_told(tiny: Any, tmp_path: Path) -> None:
    def backbone(name: str) -> OpenClipBackbone:
        return OpenClipBackbone("tiny", **{**tiny[1], "weights": tmp_path / name})

    with pytest.raises(DataError, match="there is no weights file"):
        backbone("none.safetensors").identity()
    (tmp_path / "broken.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(DataError, match=r"broken.safetensors cannot be read as safetensors"):
        backbone("broken.safetensors").build()
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"cannot make open-clip:tiny from .*other.safetensors: "):
        backbone("other.safetensors").identity()
    state = tiny[0].state_dict()
    torch.save({**state, "visual.proj": torch.zeros(16, 5)}, tmp_path / "shape.pt")
    with pytest.raises(DataError, match=r"size mismatch for visual.proj"):
        backbone("shape.pt").identity()


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("ViT-B-23/openai", r"open_clip has no model 'ViT-B-23'. Did you mean 'ViT-B-32' or"),
        ("ViT-B-32/opnai", r"no pretrained weights 'opnai'. Did you mean 'openai'\? Those of ViT"),
        ("ViT-B-32/laion2b-s34b-b79k", r"Did you mean 'laion2b_s34b_b79k'"),
        ("ViT-B-32", r"names no weights: expected ViT-B-32/PRETRAINED, or weights=FILE. Those of"),
        ("hf-hub:laion/CLIP-ViT-B-32", r"open_clip has no model 'hf-hub:laion'"),
        ("ViT-B-16-SigLIP/webli", r"wants resize mode 'squash'; only 'shortest'"),
    ],
)
def test_names_that_cannot_be_had_say_why(tag: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OpenClipBackbone(tag)


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        OpenClipBackbone("ViT-B-32/openai", templates="two", mean=(0.1, 0.2), std=(0.0,),
                         interpolation="cubic")  # type: ignore[arg-type]  # fmt: skip
    assert len(raised.value.problems) == 4
    assert "templates: expected openai-80, simple-7, one, got 'two'" in str(raised.value)


def test_a_configuration_that_cannot_be_used_is_told(tiny: Any, tmp_path: Path) -> None:
    def problem(tag: str, name: str, text: str | None) -> str:
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError) as raised:
            OpenClipBackbone(tag, weights=tiny[1]["weights"], config=tmp_path / name)
        return str(raised.value)

    assert "tiny.json cannot be read as JSON: " in problem("tiny", "tiny.json", None)
    assert "tiny.json cannot be read as JSON: " in problem("tiny", "tiny.json", "{")
    assert "expected an object with embed_dim, vision_cfg, text_cfg" in problem(
        "tiny", "tiny.json", json.dumps({"model_cfg": PLAIN})
    )
    assert "expected a file tyni.json, got tiny.json" in problem("tyni", "tiny.json", None)
    assert "open_clip has a model of this name" in problem(
        "ViT-B-32", "ViT-B-32.json", json.dumps(PLAIN)
    )
    assert "expected an object with embed_dim, vision_cfg" in problem(
        "tiny", "tiny.json", json.dumps({**PLAIN, "vision_cfg": []})
    )
    for size in ([64, 32], "64", [64, 64, 64]):
        odd = {**PLAIN, "vision_cfg": {**VISION, "image_size": size}}
        assert f"expected square input, got {size}" in problem("odd", "odd.json", json.dumps(odd))
    square = {**PLAIN, "vision_cfg": {**VISION, "image_size": [64, 64]}}
    (tmp_path / "square.json").write_text(json.dumps(square))
    given = {"weights": tiny[1]["weights"], "config": tmp_path / "square.json"}
    assert OpenClipBackbone("square", **given).preprocess.size == 64
    wrong = {**PLAIN, "vision_cfg": {**VISION, "widht": 16}}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    with pytest.raises(DataError, match="unexpected keyword argument 'widht'"):
        OpenClipBackbone(
            "wrong", weights=tiny[1]["weights"], config=tmp_path / "wrong.json"
        ).identity()


def test_two_configurations_of_one_name_do_not_mix(tiny: Any, tmp_path: Path) -> None:
    """open_clip has one registry for the whole process."""
    larger = {**PLAIN, "vision_cfg": {**VISION, "image_size": 40}}
    (tmp_path / "tiny.json").write_text(json.dumps(larger))
    first = OpenClipBackbone("tiny", templates="one", **tiny[1])
    given = {**tiny[1], "config": tmp_path / "tiny.json"}
    second = OpenClipBackbone("tiny", templates="one", **given)
    for backbone, side in ((first, 32), (second, 40), (first, 32)):
        classifier = backbone.build()
        assert classifier.preprocess.size == side
        assert classifier(torch.zeros(1, 3, side, side)).shape == (1, 1000)
    with pytest.raises(ConfigError, match="open_clip has no model 'tiny'"):
        OpenClipBackbone("tiny", weights=tiny[1]["weights"])


@pytest.mark.parametrize(
    ("tag", "image_size"),
    [
        ("ViT-B-32/openai", 224),
        ("ViT-L-14/laion2b_s32b_b82k", 224),  # its own mean and std
        ("ViT-L-14-336/openai", 336),
        ("MobileCLIP-S1/datacompdr", 256),  # bilinear, mean 0 and std 1
    ],
)
def test_preprocessing_equals_open_clips_for_pretrained_weights(tag: str, image_size: int) -> None:
    preprocess = OpenClipBackbone(tag).preprocess
    published = open_clip.get_pretrained_cfg(*tag.split("/"))
    transform = open_clip.image_transform(
        image_size,
        is_train=False,
        **{key: published[key] for key in ("mean", "std", "interpolation", "resize_mode")},
    )
    for shot in (picture(333, 451), picture(149, 401)):
        made = Normalizer(preprocess)(torch.from_numpy(preprocess.pixels(shot))[None])[0]
        assert torch.equal(made, transform(shot))


def test_given_preprocessing_wins_over_open_clips() -> None:
    made = OpenClipBackbone(
        "ViT-B-32/openai", mean=(0.5,), std=(0.1, 0.2, 0.3), interpolation="bilinear"
    ).preprocess
    assert (made.mean, made.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert (made.size, made.resize, made.interpolation) == (224, 224, "bilinear")


class TestPretrainedWeights:
    """Of a tag, from the hub: here of a model of our own that open_clip is told to know."""

    @pytest.fixture
    def published(self, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        entry = dict(
            open_clip.get_pretrained_cfg("ViT-B-32", "openai"), hf_hub="me/tiny/", mean=(0.5,) * 3
        )
        assert entry["quick_gelu"]
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"mine": entry})
        return entry

    def test_are_looked_for_as_safetensors_first(
        self, tiny: Any, published: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def hub_file(repository: str, names: list[str], what: str) -> Path:
            asked.append((repository, *names))
            return Path(tiny[1]["weights"])

        monkeypatch.setattr(module, "hub_file", hub_file)
        backbone = OpenClipBackbone("tiny/mine", config=tiny[1]["config"])
        digest = hashlib.sha256(tiny[1]["weights"].read_bytes()).hexdigest()
        assert backbone.identity().weights.startswith(f"sha256:{digest}+")
        # The names that open_clip gives its weights on the hub, and a repository with its own.
        assert asked == [("me/tiny", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")]
        published["hf_hub"] = "me/tiny/weights.v2.bin"
        OpenClipBackbone("tiny/mine", config=tiny[1]["config"]).identity()
        assert asked[1] == ("me/tiny", "weights.v2.safetensors", "weights.v2.bin")

    def test_have_the_activation_that_they_were_trained_with(
        self, tiny: Any, published: dict[str, Any]
    ) -> None:
        """Without it open_clip only warns: OpenAI's weights in a model with another GELU."""
        _, options = tiny
        built = OpenClipBackbone("tiny/mine", templates="one", **options).build()
        assert built.preprocess.mean == (0.5, 0.5, 0.5)
        quick, plain = (
            open_clip.create_model(
                "tiny", pretrained=str(options["weights"]), force_quick_gelu=force
            ).eval()
            for force in (True, False)
        )
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        texts = open_clip.get_tokenizer("tiny")(["a photo of a tench."])
        with torch.no_grad():
            features = quick.encode_image(images, normalize=True)
            torch.testing.assert_close(built.features(images), features)
            other = plain.encode_image(images, normalize=True)
            assert not torch.allclose(other, features, atol=1e-4)
            text = quick.encode_text(texts, normalize=True)[0]
            torch.testing.assert_close(
                built.head.weight[0], quick.logit_scale.exp() * text, rtol=1e-4, atol=1e-4
            )

    def test_without_a_network_say_what_to_do(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        backbone = OpenClipBackbone("ViT-B-32/laion2b_s34b_b79k")
        with pytest.raises(DataError, match=r"neither in the local hub cache nor .* weights=FILE"):
            backbone.identity()

    def test_of_every_name_have_one_or_a_reason(self) -> None:
        """All of open_clip's tags: square shortest-side ones are taken, squashed ones refused."""
        taken = 0
        for model, tag in open_clip.list_pretrained():
            published = open_clip.get_pretrained_cfg(model, tag)
            if published["resize_mode"] != "shortest":
                with pytest.raises(ConfigError, match="resize mode"):
                    OpenClipBackbone(f"{model}/{tag}")
                continue
            backbone = OpenClipBackbone(f"{model}/{tag}")
            own = open_clip.get_model_config(model).get("quick_gelu", False)
            expected = published.get("quick_gelu", False) or own
            assert backbone.config.get("quick_gelu", False) == expected
            taken += 1
        assert taken > 100


def test_the_variants_name_weights_that_open_clip_has() -> None:
    [spec] = register_backbones()
    assert len(spec.variants) == 8
    for variant in spec.variants:
        model, _, tag = variant.tag.partition("/")
        assert tag in open_clip.list_pretrained_tags_by_model(model)
        assert OpenClipBackbone(variant.tag).templates == "openai-80"  # what the source used
        assert variant.pretraining_images
        assert variant.source
        assert all(20 < accuracy < 90 for accuracy in variant.accuracy.values())
        # Each is easier than the next on every published CLIP.
        assert variant.accuracy["imagenet"] > variant.accuracy["imagenet-v2"]
        assert variant.accuracy["imagenet-v2"] > variant.accuracy["imagenet-sketch"]


def test_the_reference_on_the_command_line_is_all_there_is(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, options = tiny
    bound = load_catalog().bind(
        "backbone",
        f"open-clip:tiny,weights={options['weights']},config={options['config']},templates=one,"
        "mean=0.5,std=0.5+0.5+0.25",
    )
    here = bound.build().identity()
    monkeypatch.delitem(sys.modules, "torch")  # so that a child process is asked
    identity = identity_of(bound)
    assert identity == here
    assert identity.preprocess.std == (0.5, 0.5, 0.25)
    assert not {"weights", "config"} & set(bound.key_fields()["options"])
    assert bound.key_fields()["options"]["templates"] == "one"
    assert bound.label.startswith("open-clip:tiny,weights=tiny.safetensors,config=tiny.json")


def test_registering_imports_neither_torch_nor_open_clip() -> None:
    code = (
        "import sys; from rib_plugin_open_clip import plugin; plugin.register_backbones(); "
        "print(sorted({'torch', 'open_clip', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
