"""timm's classifiers, from local files. Expected values: timm's own model and transform."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rib_plugin_timm.backbone import TimmBackbone
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from rib_harness import ConfigError, DataError, RibError, read_weights
from rib_harness.catalog import load_catalog
from rib_harness.engine.data import Normalizer
from rib_harness.identify import identity_of

#: Small models of several kinds: ViT, convolutional, with norm in the head.
TAGS = ["test_vit", "test_efficientnet", "test_resnet", "test_convnext", "test_vit3"]


@pytest.fixture(scope="module", params=TAGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model with random weights, and its file."""
    torch.manual_seed(1)
    model = timm.create_model(request.param, pretrained=False).eval()
    file = tmp_path_factory.mktemp("weights") / f"{request.param}.safetensors"
    save_file(model.state_dict(), file)
    return request.param, model, file


def picture(seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (190, 310, 3), dtype=np.uint8))


def test_logits_equal_timms_on_a_picture_to_float_tolerance(case: Any) -> None:
    tag, model, file = case
    backbone = TimmBackbone(tag, weights=file)
    classifier, preprocess = backbone.build(), backbone.identity().preprocess
    transform = create_transform(**resolve_data_config({}, model=model))
    pixels = torch.from_numpy(preprocess.pixels(picture()))[None]
    images = Normalizer(preprocess)(pixels)
    assert torch.equal(images[0], transform(picture()))
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), model(images), rtol=1e-4, atol=1e-4)
        features = classifier.features(images)
        torch.testing.assert_close(classifier.head(features), classifier(images))
    assert not any(name.startswith("head.encoder") for name in classifier.state_dict())


def test_the_identity_is_the_files_digest(case: Any) -> None:
    tag, model, file = case
    identity = TimmBackbone(tag, weights=file).identity()
    assert identity.weights == "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    assert identity.classes == model.num_classes == 1000
    assert identity.files == (str(file),)


def test_given_preprocessing_wins_over_timms() -> None:
    made = TimmBackbone("test_vit", pretrained=False, mean=(0.5,), std=(0.5,), crop_pct=0.875,
                        interpolation="bilinear").identity().preprocess  # fmt: skip
    assert made.mean == made.std == (0.5, 0.5, 0.5)
    assert made.size == 160
    assert made.resize == int(160 / 0.875)
    assert made.interpolation == "bilinear"


def test_unknown_keys_go_to_timm_and_a_refused_one_is_named() -> None:
    backbone = TimmBackbone("mobilenetv2_100", pretrained=False, pad_type="same")
    stem = backbone.build().encoder.conv_stem
    assert type(stem).__name__ == "Conv2dSame"
    with pytest.raises(ConfigError, match=r"timm refuses the option 'pad_typo'"):
        TimmBackbone("test_vit", pretrained=False, pad_typo="same").identity()


def test_names_that_timm_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"timm has no model 'resnet5'. Did you mean 'resnet5"):
        TimmBackbone("resnet5")


def test_a_missing_damaged_or_foreign_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no weights file"):
        TimmBackbone("test_vit", weights=tmp_path / "none.safetensors").identity()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a safetensors file")
    with pytest.raises(DataError, match=r"broken.safetensors cannot be read as safetensors"):
        TimmBackbone("test_vit", weights=broken).build()
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, other)
    with pytest.raises(DataError, match=r"does not fit timm:test_vit: missing .* unexpected"):
        TimmBackbone("test_vit", weights=other).build()


def test_a_torch_file_of_tensors_is_read_and_code_in_one_is_never_run(tmp_path: Path) -> None:
    state = timm.create_model("test_vit").state_dict()
    for wrapper in (state, {"state_dict": state}, {"model": state}):
        torch.save(wrapper, tmp_path / "w.pth")
        assert read_weights(tmp_path / "w.pth").keys() == state.keys()
    marker = tmp_path / "owned"

    class Malicious:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"weight": Malicious()}, protocol=2))
    torch.save({"weight": Malicious()}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(DataError, match=r"code in it is not run"):
            read_weights(tmp_path / name)
    assert not marker.exists()


def test_of_several_sets_of_weights_the_named_one_is_taken_said_and_in_the_key(
    tmp_path: Path,
) -> None:
    state = timm.create_model("test_vit").state_dict()
    averaged = {f"module.{name}": torch.ones_like(tensor) for name, tensor in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": averaged}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"'state_dict'.*'state_dict_ema'.*weights_key="):
        TimmBackbone("test_vit", weights=tmp_path / "w.pth").identity()
    reference = f"timm:test_vit,weights={tmp_path}/w.pth"
    bound = load_catalog().bind("backbone", f"{reference},weights_key=state_dict_ema")
    (note,) = identity_of(bound).notes
    assert "'state_dict_ema' is what was loaded" in note and "module." in note
    assert identity_of(bound).notes == (note,)  # as kept in the cache, too
    assert {v for p in bound.build().build().parameters() for v in p.flatten().tolist()} == {1.0}
    assert bound.key_fields()["options"]["weights_key"] == "state_dict_ema"
    with pytest.raises(ConfigError, match=r"weights_key=x needs weights=FILE"):
        TimmBackbone("test_vit", weights_key="x")
    # Results from before there was this option are found.
    assert "weights_key" not in load_catalog().bind("backbone", reference).key_fields()["options"]


def test_a_side_that_the_net_does_not_take_is_refused_when_planning() -> None:
    """And how it would: timm makes nets of other sides, with `img_size`."""
    tag = "vit_tiny_patch16_224"
    with pytest.raises(ConfigError, match=r"side 96: .*input_size=224, or img_size=96 for a net"):
        TimmBackbone(tag, pretrained=False, input_size=96).identity()
    with pytest.raises(ConfigError, match=r"side 224: .*Its own side is 96: give input_size=96"):
        TimmBackbone(tag, pretrained=False, img_size=96).identity()
    with pytest.raises(ConfigError, match=r"test_convnext: its net does not take images of side 8"):
        TimmBackbone("test_convnext", pretrained=False, input_size=8).identity()
    for size in ({"input_size": 96, "img_size": 96}, {"input_size": 96, "dynamic_img_size": True}):
        made = TimmBackbone(tag, pretrained=False, **size)
        assert made.identity().preprocess.size == 96
        assert made.build().preprocess.size == 96


def test_hub_weights_without_a_network_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    backbone = TimmBackbone("test_vit.r160_in1k")
    with pytest.raises(DataError, match=r"neither in the local hub cache nor .* weights=FILE"):
        backbone.identity()


def test_the_reference_on_the_command_line_is_all_there_is(tmp_path: Path) -> None:
    state = timm.create_model("mobilenetv2_100", pad_type="same").state_dict()
    save_file(state, tmp_path / "w.safetensors")
    bound = load_catalog().bind(
        "backbone",
        f"timm:mobilenetv2_100,pad_type=same,weights={tmp_path}/w.safetensors,mean=0.5,std=0.5,"
        "crop_pct=0.875,interpolation=bicubic",
    )
    identity = identity_of(bound)
    assert identity.preprocess.resize == 256
    assert identity.preprocess.mean == (0.5, 0.5, 0.5)
    assert "weights" not in bound.key_fields()["options"]
    assert bound.label.startswith("timm:mobilenetv2_100,weights=w.safetensors") or (
        "weights=w.safetensors" in bound.label
    )


def test_the_papers_names_stand_for_tags_of_timm_with_their_facts() -> None:
    """Accuracies of the B/16 rows: the project's protocol notes, from timm's result tables."""
    catalog = load_catalog()
    spec: Any = catalog.get("backbone", "timm").spec
    for variant in spec.variants:
        assert timm.is_model(variant.tag), variant.tag
        assert variant.tag in timm.list_pretrained(), variant.tag
        assert variant.pretraining and variant.pretraining_images, variant.tag
        assert all(0 <= value <= 100 for value in variant.accuracy.values())
    by_alias = {v.alias: v for v in spec.variants if v.alias}
    assert len(by_alias) == sum(bool(v.alias) for v in spec.variants) >= 19
    augreg = by_alias["vit-b16-in21k-augreg"]
    assert augreg.accuracy == {
        "imagenet": 84.534,
        "imagenet-v2": 74.10,
        "imagenet-a": 43.133,
        "imagenet-r": 56.860,
        "imagenet-sketch": 43.261,
    }
    pretrainings = {v.pretraining for v in by_alias.values()}
    assert {"IN-1K + AugReg", "IN-1K + SAM", "IN-21K", "IN-21K-P", "IN-21K + AugReg",
            "OpenAI (CLIP)", "LAION-2B (CLIP)"} <= pretrainings  # fmt: skip


def test_an_alias_is_the_tag_in_everything_and_takes_options() -> None:
    catalog = load_catalog()
    tag = "timm:vit_base_patch16_224.augreg_in21k_ft_in1k"
    for alias in ("vit-b16-in21k-augreg", "timm/vit-b16-in21k-augreg"):
        bound = catalog.bind("backbone", alias)
        assert bound.id == catalog.bind("backbone", tag).id
        assert bound.key_fields() == catalog.bind("backbone", tag).key_fields()
        assert bound.spec.facts(bound.tag).pretraining_images == 14_197_122
    assert catalog.bind("backbone", "resnet50-in1k:pretrained=false").options["pretrained"] is False
    with pytest.raises(ConfigError, match=r"stands for timm:resnet50.a1_in1k"):
        catalog.bind("backbone", "resnet50-in1k:other")
    with pytest.raises(RibError, match=r"Did you mean 'vit-b16-in21k-augreg'"):
        catalog.bind("backbone", "vit-b16-in21k-augrg")
