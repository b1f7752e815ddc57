"""CLIP's text tower as methods get it, from local files.

Expected values: an open_clip model that is built independently from the same weights, its
tokenizer, and the classifier of the same backbone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from rib_plugin_cl_methods.carot import CalibratedRobustFinetuning
from rib_plugin_cl_methods.flyp import FinetuneLikeYouPretrain
from rib_plugin_cl_methods.lipsum_ft import LipsumFineTuning
from rib_plugin_open_clip.backbone import OpenClipBackbone
from rib_plugin_open_clip.text import OpenClipText
from safetensors.torch import save_file
from torch.nn import functional as F

from rib_harness import Classifier, ConfigError, Task, TextTower
from rib_harness.config import Recipe
from rib_harness.engine.data import Pixels
from rib_harness.engine.device import make_accelerator
from rib_harness.testing import tiny_images

VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
PLAIN: dict[str, Any] = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}

#: As in test_open_clip.py: CLIP, and with a text tower of its own and a bias (SigLIP's loss).
CONFIGS: dict[str, dict[str, Any]] = {
    "text-tiny": PLAIN,
    "text-tiny-bias": {**PLAIN, "custom_text": True, "init_logit_bias": -7.5},
}
every_model = pytest.mark.parametrize("name", CONFIGS)

#: CLIP's vocabulary ends with these.
START, END = 49406, 49407


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test finds the head that another one made."""
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, OpenClipBackbone]]:
    """open_clip's own models with random weights, and backbones of the same files."""
    folder, made = tmp_path_factory.mktemp("clip"), {}
    for name, content in CONFIGS.items():
        config, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
        config.write_text(json.dumps(content))
        open_clip.add_model_config(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = open_clip.create_model(name).eval()
            with torch.no_grad():
                for parameter in model.parameters():  # so that nothing is at a special value
                    parameter.add_(0.1 * torch.randn_like(parameter))
                model.logit_scale.fill_(3.1)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
        made[name] = model, OpenClipBackbone(name, weights=weights, config=config, templates="one")
    return made


Models = dict[str, tuple[Any, OpenClipBackbone]]


def drawn(text: TextTower, seed: int, count: int = 6, length: int = 5) -> torch.Tensor:
    return text.random_tokens(count, length, torch.Generator().manual_seed(seed))


@every_model
def test_its_embeddings_are_clips(models: Models, name: str) -> None:
    """Source: `encode_text` and the tokenizer of open_clip."""
    model, backbone = models[name]
    text = backbone.text_tower()
    words = ["a photo of a tench.", "a diagram", ""]
    tokens = text.tokens(words)
    assert torch.equal(tokens, open_clip.get_tokenizer(name)(words))
    assert (tokens.shape, tokens.dtype) == ((3, 20), torch.long)
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
        torch.testing.assert_close(text(tokens), expected)
        assert text.logit_scale.item() == pytest.approx(3.1)
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(3))
    assert (expected[0] - expected[1]).abs().max() > 0.01


@every_model
def test_its_head_is_the_classifiers(models: Models, name: str) -> None:
    """Source: `build`, whose head test_open_clip.py compares with open_clip's."""
    _, backbone = models[name]
    head, expected = backbone.text_tower().head(), backbone.build().head
    assert list(head.state_dict()) == list(expected.state_dict())
    torch.testing.assert_close(head.state_dict(), expected.state_dict())
    assert ("bias" in head.state_dict()) == (name == "text-tiny-bias")


def test_its_head_follows_its_present_weights(models: Models) -> None:
    """Source: the formula, for one class; temperature and words are the moved ones."""
    _, backbone = models["text-tiny"]
    text = backbone.text_tower()
    before = text.head().weight.detach().clone()
    with torch.no_grad():
        for parameter in text.parameters():
            parameter.mul_(1.1)
        prompt = open_clip.get_tokenizer("text-tiny")(["a photo of a toilet paper."])
        row = torch.tensor(1.1 * 3.1).exp() * text(prompt)[0]
    head = text.head()
    torch.testing.assert_close(head.weight[999].detach(), row, rtol=1e-4, atol=1e-4)
    assert (head.weight - before).abs().max() > 0.1
    assert {p.device.type for p in [*head.parameters(), *text.parameters()]} == {"cpu"}


def test_captions_are_the_templates_of_the_class_name(models: Models) -> None:
    """Source: open_clip's names and templates."""
    _, backbone = models["text-tiny"]
    assert backbone.text_tower().captions(0) == ["a photo of a tench."]
    assert backbone.text_tower().captions(999) == ["a photo of a toilet paper."]
    for templates, theirs in [
        ("simple-7", open_clip.SIMPLE_IMAGENET_TEMPLATES),
        ("openai-80", open_clip.OPENAI_IMAGENET_TEMPLATES),
    ]:
        other = OpenClipBackbone(
            "text-tiny", weights=backbone.weights, config=backbone.config_file, templates=templates
        )
        expected = [template("goldfish") for template in theirs]
        assert other.text_tower().captions(1) == expected


@pytest.mark.parametrize("length", [1, 5, 18, 40])
def test_random_texts_are_marked_words_of_the_vocabulary(models: Models, length: int) -> None:
    """Source: the layout of what open_clip's tokenizer gives; too long ones are cut as there."""
    text = models["text-tiny"][1].text_tower()
    tokens = drawn(text, 0, 300, length)
    words = min(length, 18)
    assert (tokens.shape, tokens.dtype) == ((300, 20), torch.long)
    assert (tokens[:, 0] == START).all()
    inside = tokens[:, 1 : words + 1]
    assert inside.min() >= 0 and inside.max() < START
    assert inside.max() > 0.9 * START and inside.min() < 0.1 * START
    assert (tokens[:, words + 1] == END).all()
    assert not tokens[:, words + 2 :].any()
    [own] = text.tokens(["a photo of a tench and of another one or of nothing at all " * 4])
    assert (own[0], own[-1]) == (START, END)


def test_random_texts_depend_on_the_generator_only(models: Models) -> None:
    """Source: the same seed twice, with the global generator elsewhere; and another seed."""
    text = models["text-tiny"][1].text_tower()
    first, state = drawn(text, 0), torch.get_rng_state()
    torch.rand(3)
    moved = torch.get_rng_state()
    assert torch.equal(drawn(text, 0), first)
    assert torch.equal(torch.get_rng_state(), moved)
    torch.set_rng_state(state)
    assert not torch.equal(drawn(text, 1), first)
    assert len({tuple(row) for row in first.tolist()}) == 6


def test_another_tokenizer_has_no_random_texts(models: Models) -> None:
    """Source: the message; open_clip's wrappers of other tokenizers have no such marks."""
    text = OpenClipText(copy.deepcopy(models["text-tiny"][0]), lambda texts: texts, "one")  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="open_clip's own tokenizer"):
        drawn(text, 0)


@every_model
def test_it_trains_and_so_does_the_temperature(models: Models, name: str) -> None:
    """Source: the gradient of the temperature is that of CLIP's loss in open_clip's own model."""
    model, backbone = models[name]
    text = backbone.text_tower()
    assert "clip.logit_scale" in dict(text.named_parameters())
    tokens = text.tokens([f"a photo of a {word}." for word in ("tench", "cat", "dog", "bus")])
    images = F.normalize(torch.randn(4, 12, generator=torch.Generator().manual_seed(0)), dim=1)

    def loss(words: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(log_scale.exp() * images @ words.T, torch.arange(4))

    optimizer = torch.optim.SGD(text.parameters(), 0.003)
    value = loss(text(tokens), text.logit_scale)
    value.backward()
    scale = model.logit_scale.detach().clone().requires_grad_()
    loss(model.encode_text(tokens, normalize=True).detach(), scale).backward()
    assert text.logit_scale.grad is not None and scale.grad is not None
    torch.testing.assert_close(text.logit_scale.grad, scale.grad, rtol=1e-4, atol=1e-5)
    before = copy.deepcopy(text.state_dict())
    optimizer.step()
    moved = {k for k, v in text.state_dict().items() if not torch.equal(v, before[k])}
    unused = {k for k in before if "attn_mask" in k or k.endswith("logit_bias")}
    assert moved == set(before) - unused
    with torch.no_grad():
        assert loss(text(tokens), text.logit_scale) < value


@every_model
def test_its_state_makes_the_round_trip_and_has_no_image_tower(models: Models, name: str) -> None:
    """Source: the same embeddings; names and numbers of the file."""
    model, backbone = models[name]
    text, other = backbone.text_tower(), backbone.text_tower()
    file = {f"clip.{k}" for k in model.state_dict() if not k.startswith("visual.")}
    assert set(text.state_dict()) == file
    with torch.no_grad():
        for parameter in text.parameters():
            parameter.mul_(1.1)
    tokens = text.tokens(["a photo of a tench."])
    with torch.no_grad():
        assert not torch.equal(other(tokens), text(tokens))
        other.load_state_dict(text.state_dict())
        assert torch.equal(other(tokens), text(tokens))
        # Each tower is its own: the backbone's next one has the weights of the file.
        torch.testing.assert_close(
            backbone.text_tower()(tokens), model.encode_text(tokens, normalize=True)
        )


def test_the_identity_says_that_it_has_one(models: Models) -> None:
    """Source: `TextTower`'s docstring; the towers' kinds as in their configurations."""
    model, backbone = models["text-tiny"]
    assert set(backbone.identity().has) == {"text-tower", "blocks", "projection"}
    assert isinstance(backbone.text_tower(), TextTower)
    encoder = backbone.build().encoder
    projection = encoder.get_parameter(backbone.text_tower().projection)
    assert torch.equal(projection, model.visual.proj)
    assert projection.shape == (16, 12)  # (width, D)


METHODS: dict[str, Callable[[], Any]] = {
    "flyp": lambda: FinetuneLikeYouPretrain(lr=1e-3),
    "carot": lambda: CalibratedRobustFinetuning(lr=1e-3),
    "lipsum-ft": lambda: LipsumFineTuning(texts=4),
}


@every_model
@pytest.mark.parametrize("method", METHODS)
def test_methods_with_words_run_end_to_end(models: Models, name: str, method: str) -> None:
    """Source: the pretrained classifier, which must be another and stay as it is."""
    backbone = models[name][1]
    pretrained = backbone.build()
    before = pretrained.fingerprint()
    images = tiny_images(n=8, classes=3, class_map=[(0,), (1, 417), (999,)])
    task = Task(
        pretrained=pretrained,
        pixels=Pixels(images, backbone.preprocess, workers=1, pack=False),
        recipe=Recipe(epochs=2, batch_size=4, lr=1e-3),
        seed=0,
        accelerator=make_accelerator("cpu"),
        text=backbone.text_tower,
    )
    result = METHODS[method]().finetune(task)
    assert type(result) is Classifier
    assert pretrained.fingerprint() == before != result.fingerprint()
    assert list(result.state_dict()) == list(pretrained.state_dict())
    batch = next(task.batches(8))
    assert batch.images.shape == (8, 3, 32, 32)
    with torch.no_grad():
        logits, old = result(batch.images), pretrained(batch.images)
    assert logits.shape == (8, 1000)
    assert logits.isfinite().all()
    assert 1e-4 < (logits - old).abs().max() < 50
