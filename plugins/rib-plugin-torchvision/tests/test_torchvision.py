"""torchvision's classifiers, from local files. Expected values: its own models and transforms."""

from __future__ import annotations

import hashlib
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
import torch
import torchvision.models
from PIL import Image
from rib_plugin_torchvision.backbone import TorchvisionBackbone
from rib_plugin_torchvision.plugin import register_backbones
from safetensors.torch import save_file
from torchvision.models.convnext import CNBlockConfig

from rib_harness import ConfigError, DataError
from rib_harness.catalog import load_catalog
from rib_harness.engine.data import Normalizer
from rib_harness.identify import identity_of

#: One model for each place where torchvision puts a head: fc, heads.head, head, classifier,
#: classifier.1, .2 and .3; and one whose loading asks for the version of its architecture.
TAGS = [
    "resnet18.IMAGENET1K_V1",
    "vit_b_32.IMAGENET1K_V1",
    "swin_t.IMAGENET1K_V1",
    "densenet121.IMAGENET1K_V1",
    "mobilenet_v2.IMAGENET1K_V2",
    "convnext_tiny.IMAGENET1K_V1",
    "mobilenet_v3_small.IMAGENET1K_V1",
    "mnasnet0_5.IMAGENET1K_V1",
]


#: The larger of them are made with torchvision's own classes, but small.
SMALL: dict[str, Any] = {
    "vit_b_32": lambda image_size=224: torchvision.models.VisionTransformer(
        image_size, patch_size=32, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64
    ),
    "swin_t": lambda: torchvision.models.SwinTransformer(
        [4, 4], embed_dim=24, depths=[1, 1], num_heads=[2, 2], window_size=[7, 7]
    ),
    "convnext_tiny": lambda: torchvision.models.ConvNeXt(
        [CNBlockConfig(24, 48, 1), CNBlockConfig(48, None, 1)]
    ),
}


@pytest.fixture(params=TAGS)
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tag, its model with random weights, and the file of these."""
    torch.manual_seed(1)
    name = request.param.partition(".")[0]
    if name in SMALL:
        monkeypatch.setattr(
            torchvision.models, "get_model", lambda name, weights, **sized: SMALL[name](**sized)
        )
    model = torchvision.models.get_model(name, weights=None).eval()
    torch.save(model.state_dict(), tmp_path / f"{name}.pth")
    return request.param, model, tmp_path / f"{name}.pth"


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def entries() -> list[Any]:
    """All weights of all classifiers, each with its tag."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [(f"{n}.{w.name}", w) for n in names for w in torchvision.models.get_model_weights(n)]


def test_logits_equal_torchvisions_on_a_picture_to_float_tolerance(case: Any) -> None:
    tag, model, file = case
    backbone = TorchvisionBackbone(tag, weights=file)
    classifier, identity = backbone.build(), backbone.identity()
    preprocess = classifier.preprocess
    assert identity.preprocess == preprocess
    weights = dict(entries())[tag]
    shot = picture(311, 190)
    images = Normalizer(preprocess)(torch.from_numpy(preprocess.pixels(shot))[None])
    assert torch.equal(images[0], weights.transforms()(shot))
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), model(images), rtol=1e-4, atol=1e-4)
        features = classifier.features(images)
        torch.testing.assert_close(classifier.head(features), classifier(images))
    assert features.ndim == 2
    # Nothing of the head is left in the encoder.
    sizes = {name: parameter.shape for name, parameter in classifier.encoder.named_parameters()}
    assert classifier.head.weight.shape not in sizes.values()
    assert not classifier.training
    # The identity that it was planned with.
    assert identity.weights == "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    assert identity.classes == 1000
    assert identity.files == (str(file),)


def test_preprocessing_equals_torchvisions_for_every_weights_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit, on odd sizes, one picture a distinct transform."""
    for draw in ("uniform_", "normal_"):  # weights of the largest nets take half a minute
        monkeypatch.setattr(torch.Tensor, draw, lambda self, *_, **__: self.zero_())
    shots = [picture(333, 251), picture(149, 401)]
    seen: set[str] = set()
    refused = ("googlenet.", "inception_v3.", "vgg16.IMAGENET1K_FEATURES")
    for tag, weights in entries():
        transform = weights.transforms()
        if tag.startswith(refused) or repr(transform) in seen:
            continue
        seen.add(repr(transform))
        preprocess = TorchvisionBackbone(tag, pretrained=False).identity().preprocess
        normalise = Normalizer(preprocess)
        for shot in shots:
            made = normalise(torch.from_numpy(preprocess.pixels(shot))[None])[0]
            assert torch.equal(made, transform(shot)), tag
    assert len(seen) > 15


def test_given_preprocessing_wins_over_the_weights() -> None:
    made = TorchvisionBackbone(
        "resnet18.IMAGENET1K_V1", pretrained=False, input_size=112, mean=(0.5,),
        std=(0.1, 0.2, 0.3), interpolation="bicubic",
    ).identity().preprocess  # fmt: skip
    assert (made.size, made.resize, made.interpolation) == (112, 128, "bicubic")
    assert (made.mean, made.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    given = TorchvisionBackbone("resnet18", pretrained=False, resize=230).identity().preprocess
    assert (given.size, given.resize) == (224, 230)


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        TorchvisionBackbone("resnet18", input_size=0, mean=(0.1, 0.2), std=(0.0,),
                            interpolation="cubic", resize=-1)  # fmt: skip
    assert len(raised.value.problems) == 5
    with pytest.raises(ConfigError, match="resize: expected an integer above 0, and at least"):
        TorchvisionBackbone("resnet18", pretrained=False, input_size=300, resize=299)
    with pytest.raises(ConfigError, match="resize: expected at least the input's side 224"):
        TorchvisionBackbone("resnet18", pretrained=False, resize=223).identity()
    with pytest.raises(ConfigError, match=r"vit_b_16 takes 224 only, got 256"):
        TorchvisionBackbone("vit_b_16", pretrained=False, input_size=256).identity()
    with pytest.raises(ConfigError, match=r"alexnet does not take input of side 32"):
        TorchvisionBackbone("alexnet", pretrained=False, input_size=32).identity()


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("resnet5", r"torchvision has no model 'resnet5'. Did you mean 'resnet50'"),
        ("resnet50.IMAGENET1K_V3", r"no weights 'IMAGENET1K_V3'. Did you mean 'IMAGENET1K_V"),
        ("resnet50.DEFAULT", r"no weights 'DEFAULT'.* The weights of resnet50: IMAGENET1K_V1, IM"),
        ("resnet50", r"names no weights: .* The weights of resnet50: IMAGENET1K_V1, IMAGENET1K_V2"),
        ("vgg16.IMAGENET1K_FEATURES", "these weights do not classify ImageNet-1k"),
        ("fcn_resnet50", "fcn_resnet50 is no image classifier"),
        ("quantized_resnet50", "quantized_resnet50 is no image classifier"),
        ("googlenet.IMAGENET1K_V1", r"auxiliary heads \(googlenet\) are not supported"),
        ("inception_v3.IMAGENET1K_V1", r"auxiliary heads \(inception_v3\) are not supported"),
    ],
)
def test_names_that_cannot_be_had_say_why(tag: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TorchvisionBackbone(tag)


def test_a_model_without_a_linear_head_over_1000_classes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"squeezenet1_1: expected a linear layer with 1000"):
        TorchvisionBackbone("squeezenet1_1", pretrained=False).build()
    ten = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: ten)
    with pytest.raises(ConfigError, match=r"with 1000 outputs at its end, got .*out_features=10,"):
        TorchvisionBackbone("shufflenet_v2_x0_5", pretrained=False).build()


def test_a_model_whose_last_linear_layer_is_not_its_head_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Doubled(torchvision.models.ResNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    block = torchvision.models.resnet.BasicBlock
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda name, weights: Doubled(block, [1, 1, 1, 1])
    )
    with pytest.raises(ConfigError, match="its logits change when it is split"):
        TorchvisionBackbone("resnet18", pretrained=False).build()


@pytest.mark.parametrize(
    ("tag", "sized"),
    [
        ("vit_b_16.IMAGENET1K_SWAG_E2E_V1", {"image_size": 384}),
        ("vit_b_16", {"image_size": 224}),
        ("maxvit_t.IMAGENET1K_V1", {"input_size": (224, 224)}),
        ("swin_t.IMAGENET1K_V1", {}),
    ],
)
def test_an_architecture_has_the_input_size_of_its_weights(
    tag: str, sized: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def get_model(name: str, weights: None, **given: Any) -> torch.nn.Module:
        seen.append((name, given))
        layers = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1000)]
        return torch.nn.Sequential(*layers)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    TorchvisionBackbone(tag, pretrained=False).build()
    assert seen == [(tag.partition(".")[0], sized)]


def test_without_weights_it_is_random_and_the_same_each_time() -> None:
    backbone = TorchvisionBackbone("shufflenet_v2_x0_5", pretrained=False)
    first = backbone.build().fingerprint()
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    assert backbone.build().fingerprint() == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert backbone.identity().weights == "none"


def test_a_missing_damaged_or_foreign_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no weights file"):
        TorchvisionBackbone("resnet18", weights=tmp_path / "none.safetensors").identity()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a safetensors file")
    with pytest.raises(DataError, match=r"broken.safetensors cannot be read as safetensors"):
        TorchvisionBackbone("resnet18", weights=broken).build()
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, other)
    with pytest.raises(DataError, match=r"does not fit torchvision:resnet18: missing .* unexpect"):
        TorchvisionBackbone("resnet18", weights=other).identity()
    unversioned = tmp_path / "unversioned.safetensors"  # safetensors keep no versions of modules
    save_file(torchvision.models.mnasnet0_5().state_dict(), unversioned)
    with pytest.raises(DataError, match=r"does not fit torchvision:mnasnet0_5: version should be"):
        TorchvisionBackbone("mnasnet0_5", weights=unversioned).identity()
    ten = tmp_path / "ten.pth"
    torch.save(torchvision.models.shufflenet_v2_x0_5(num_classes=10).state_dict(), ten)
    with pytest.raises(DataError, match=r"fc.weight is \(10, 1024\).* of 10 classes"):
        TorchvisionBackbone("shufflenet_v2_x0_5", weights=ten).identity()


def test_code_in_a_weights_file_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "owned"

    class Malicious:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"fc.weight": Malicious()}, protocol=2))
    with pytest.raises(DataError, match=r"code in it is not run"):
        TorchvisionBackbone("resnet18", weights=tmp_path / "evil.pth").build()
    assert not marker.exists()


def test_the_published_densenets_old_names_are_read(tmp_path: Path) -> None:
    """The names in densenet121-a639ec97.pth: `norm.1`, and no `num_batches_tracked`."""
    state = torchvision.models.densenet121(weights=None).state_dict()
    old = {}
    for name, tensor in state.items():
        for layer in ("norm", "conv"):
            for number in "12":
                name = name.replace(f".{layer}{number}.", f".{layer}.{number}.")
        if "num_batches_tracked" not in name:
            old[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    loaded = TorchvisionBackbone("densenet121", weights=tmp_path / "old.pth").build()
    layer = loaded.encoder.get_submodule("features.denseblock4.denselayer16.conv2")
    expected = state["features.denseblock4.denselayer16.conv2.weight"]
    assert torch.equal(layer.weight, expected)  # type: ignore[arg-type]


class TestPublishedWeights:
    """From torch's hub cache, or over a stand-in for the network."""

    TAG = "shufflenet_v2_x0_5.IMAGENET1K_V1"

    @pytest.fixture
    def published(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A file served as what torchvision publishes for TAG; the hub cache is empty."""
        torch.manual_seed(2)
        file = tmp_path / "served.pth"
        torch.save(torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict(), file)
        prefix = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        entry = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.value
        monkeypatch.setattr(entry, "url", f"https://example.invalid/models/net-{prefix}.pth")
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(torch.hub, "urlopen", lambda request: urlopen(file.as_uri()))
        return file

    def test_are_downloaded_once_and_their_digest_is_the_identity(
        self, published: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        identity = TorchvisionBackbone(self.TAG).identity()
        digest = hashlib.sha256(published.read_bytes()).hexdigest()
        assert identity.weights == f"sha256:{digest}"
        [file] = identity.files
        assert Path(file).parent == Path(torch.hub.get_dir()) / "checkpoints"
        monkeypatch.setattr(torch.hub, "urlopen", None)  # a second download would fail
        built = TorchvisionBackbone(self.TAG).build()
        expected = torch.load(published, weights_only=True)["fc.weight"]
        assert torch.equal(built.head.weight, expected)  # type: ignore[arg-type]

    def test_of_another_content_are_refused(self, published: Path) -> None:
        published.write_bytes(published.read_bytes() + b"more")
        with pytest.raises(DataError, match=r"nor could they be downloaded .*invalid hash value"):
            TorchvisionBackbone(self.TAG).identity()

    def test_that_changed_in_the_cache_are_refused(self, published: Path) -> None:
        [file] = TorchvisionBackbone(self.TAG).identity().files
        Path(file).write_bytes(b"another")
        with pytest.raises(DataError, match=r"is not the file that torchvision publishes .* Del"):
            TorchvisionBackbone(self.TAG).identity()

    def test_without_a_network_say_what_to_do(
        self, published: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def offline(request: Any) -> Any:
            raise URLError("no network")

        monkeypatch.setattr(torch.hub, "urlopen", offline)
        with pytest.raises(DataError, match=r"neither in torch's hub cache .* weights=FILE"):
            TorchvisionBackbone(self.TAG).identity()


def test_the_variants_are_torchvisions_own_numbers() -> None:
    [spec] = register_backbones()
    published = dict(entries())
    assert len(spec.variants) == 24
    for variant in spec.variants:
        metrics = published[variant.tag].meta["_metrics"]["ImageNet-1K"]
        assert math.isclose(variant.accuracy["imagenet"], metrics["acc@1"], abs_tol=1e-9)
        assert (variant.pretraining, variant.pretraining_images) == ("IN-1K", 1_281_167)
        assert "SWAG" not in variant.tag


def test_the_reference_on_the_command_line_is_all_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    bound = load_catalog().bind(
        "backbone",
        f"torchvision:shufflenet_v2_x0_5.IMAGENET1K_V1,weights={tmp_path}/w.safetensors,mean=0.5,"
        "std=0.5+0.5+0.25,resize=240,interpolation=bicubic",
    )
    monkeypatch.delitem(sys.modules, "torch")  # so that a child process is asked
    identity = identity_of(bound)
    assert identity.preprocess.resize == 240
    assert identity.preprocess.std == (0.5, 0.5, 0.25)
    assert identity.weights.startswith("sha256:")
    assert "weights" not in bound.key_fields()["options"]
    assert "weights=w.safetensors" in bound.label


def test_registering_imports_neither_torch_nor_torchvision() -> None:
    code = (
        "import sys; from rib_plugin_torchvision import plugin; plugin.register_backbones(); "
        "print(sorted({'torch', 'torchvision', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
