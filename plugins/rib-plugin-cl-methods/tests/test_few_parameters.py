"""Methods that train few parameters: what each computes, against peft, numpy and plain torch."""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from rib_plugin_cl_methods.adapter import Adapters
from rib_plugin_cl_methods.bitfit import BitFit
from rib_plugin_cl_methods.boft import ButterflyFinetuning
from rib_plugin_cl_methods.dora import WeightDecomposedAdaptation
from rib_plugin_cl_methods.lora import LowRankAdaptation
from rib_plugin_cl_methods.moa import Mixture, MixtureOfAdapters, unbalance
from rib_plugin_cl_methods.nmtune import NoisyModelTuning
from rib_plugin_cl_methods.sparse_lowrank import SparseLowRank
from rib_plugin_cl_methods.vera import VectorAdaptation
from rib_plugin_cl_methods.visual_prompt import VisualPrompt
from rib_plugin_cl_methods.vpt import VisualPromptTuning
from torch import Tensor, nn

from rib_harness import Classifier, ConfigError, ImageSet, Task
from rib_harness.images import Preprocess
from rib_harness.testing import TINY, tiny_classifier, tiny_task, tiny_vit

#: One batch holds the whole set and nothing about a step is random: easy to write out by hand.
WHOLE: dict[str, Any] = {"batch_size": 24, "momentum": 0.0, "schedule": "constant", "lr": 0.05}
QKV = ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
MLPS = [f"blocks.{i}.mlp.{name}" for i in (0, 1) for name in ("fc1", "fc2")]
HEAD = ["head.weight", "head.bias"]


def net(kind: str) -> Classifier:
    """A small classifier without dropout whose weights are large enough for updates to show."""
    width, make = 12, {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind == "conv":
            return tiny_classifier(batchnorm=False)
        if kind.startswith("timm"):
            from timm.models.vision_transformer import VisionTransformer as Timm

            if kind == "timm-average":
                make |= {"class_token": False, "global_pool": "avg"}
            encoder: nn.Module = Timm(**make, num_classes=0)
        elif kind == "torchvision":
            vision = pytest.importorskip("torchvision.models.vision_transformer")
            encoder = vision.VisionTransformer(8, 4, 2, 2, hidden_dim=12, mlp_dim=24)
            encoder.heads = nn.Identity()
        else:
            clip = pytest.importorskip("open_clip.transformer")
            encoder = clip.VisionTransformer(8, 4, 12, 2, 2, 2.0, output_dim=6)
            width = 6
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        return Classifier(encoder, nn.Linear(width, 10), TINY).eval()


def task_on(kind: str, steps: int = 2, **arguments: Any) -> Task:
    return tiny_task(pretrained=net(kind), epochs=steps, **{**WHOLE, **arguments})


def inputs_of(images: ImageSet) -> Tensor:
    """The set as a model's input, from the pictures and without the engine."""
    pictures = np.stack([np.asarray(images.image(i)) for i in range(len(images))])
    normal = (pictures / 255 - np.array(TINY.mean)) / np.array(TINY.std)
    return torch.tensor(normal.transpose(0, 3, 1, 2), dtype=torch.float32)


def train_by_hand(
    task: Task,
    features: Callable[[Tensor], Tensor],
    own: Sequence[Tensor],
    lr: float,
    extra: Callable[[], Any] = lambda: 0.0,
    train_head: bool = True,
) -> tuple[nn.Module, Tensor]:
    """The head and the logits after SGD, written out, on `own` and the head."""
    x, y = inputs_of(task.images), torch.tensor(task.images.labels)
    head = task.pretrained.copy().head
    trained = [*own, *(head.parameters() if train_head else [])]
    for _ in range(task.recipe.epochs):
        loss = F.cross_entropy(head(features(x)), y) + extra()
        gradients = torch.autograd.grad(loss, trained)
        with torch.no_grad():
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter -= lr * gradient
    with torch.no_grad():
        return head, head(features(x))


def logits_of(result: Classifier, task: Task) -> Tensor:
    with torch.no_grad():
        return result(inputs_of(task.images))


def changed(result: Classifier, start: Classifier) -> list[str]:
    before, after = start.state_dict(), result.state_dict()
    assert sorted(before) == sorted(after)
    return [name for name in before if not torch.equal(before[name], after[name])]


def assert_near(ours: Any, theirs: Any, atol: float = 2e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-4)


def leaves(model: Classifier, part: str) -> dict[str, Tensor]:
    """Copies of the parameters whose names contain `part`, to train by hand."""
    found = {n: p.detach().clone() for n, p in model.named_parameters() if part in n}
    return {name: tensor.requires_grad_(True) for name, tensor in found.items()}


# lora, dora, vera, boft

LORA = {"r": 2, "lora_alpha": 3.0}
VERA = {"r": 5, "d_initial": 0.3, "projection_prng_key": 4}
LINEAR = ["patch_embed.proj", *MLPS, *QKV, "blocks.0.attn.proj", "blocks.1.attn.proj"]
BY_PEFT: dict[str, tuple[str, Any, Any, list[str]]] = {
    "lora": ("timm", LowRankAdaptation(2, 3.0, lr_scale=10.0), peft.LoraConfig(**LORA), QKV),
    "lora-all": (
        "timm",
        LowRankAdaptation(2, 3.0, "all", lr_scale=10.0),
        peft.LoraConfig(**LORA),
        LINEAR,
    ),
    "lora-conv": ("conv", LowRankAdaptation(2, 3.0, lr_scale=10.0), peft.LoraConfig(**LORA), ["0"]),
    "dora": (
        "timm",
        WeightDecomposedAdaptation(2, 3.0, lr_scale=10.0),
        peft.LoraConfig(**LORA, use_dora=True),
        QKV,
    ),
    "dora-conv": (
        "conv",
        WeightDecomposedAdaptation(2, 3.0, lr_scale=10.0),
        peft.LoraConfig(**LORA, use_dora=True),
        ["0"],
    ),
    "vera": ("timm", VectorAdaptation(5, 0.3), peft.VeraConfig(**VERA), QKV),
    "boft": ("timm", ButterflyFinetuning(lr_scale=10.0), peft.BOFTConfig(boft_block_size=4), QKV),
    "boft-3": (
        "timm",
        ButterflyFinetuning(3, lr_scale=10.0),
        peft.BOFTConfig(boft_block_size=3),
        QKV,
    ),
}


@pytest.mark.parametrize("case", BY_PEFT)
def test_it_is_a_training_loop_around_peft_merged(case: str) -> None:
    """Source: peft with its configuration written out, SGD by hand, before and after its merge."""
    kind, method, config, layers = BY_PEFT[case]
    task = task_on(kind, steps=3, seed=4)
    expected = task.pretrained.copy()
    config.target_modules = set(layers)
    with task.seeded(case.split("-")[0]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no CUDA kernel for BOFT
        tuned = peft.get_peft_model(expected.encoder, config)
    trained = [p for p in tuned.parameters() if p.requires_grad]
    expected.head, logits = train_by_hand(task, tuned, trained, 0.5)
    result = method.finetune(task)
    assert_near(logits_of(result, task), logits, atol=1e-4)  # before the merge
    expected.encoder = tuned.merge_and_unload()
    assert_near(result.state_dict(), expected.state_dict())
    names = {f"encoder.{n}.weight" for n in layers}
    assert set(changed(result, task.pretrained)) == names | {*HEAD}
    assert task.facts["adapted"] == len(layers)
    before, after = task.pretrained.state_dict(), result.state_dict()
    assert min((after[n] - before[n]).abs().max() for n in names) > 1e-3  # the tolerance sees it


@pytest.mark.parametrize(
    "method",
    [
        LowRankAdaptation(train_head=False, lr_scale=10.0),
        LowRankAdaptation(layers="q-v", train_head=False, lr_scale=10.0),
        WeightDecomposedAdaptation(train_head=False, lr_scale=10.0),
        VectorAdaptation(train_head=False),
        ButterflyFinetuning(train_head=False, lr_scale=10.0),
    ],
    ids=["lora", "lora-q-v", "dora", "vera", "boft"],
)
def test_without_train_head_the_head_stays(method: Any) -> None:
    """Source: the names of the layers that are adapted."""
    task = task_on("timm")
    assert changed(method.finetune(task), task.pretrained) == [f"encoder.{n}.weight" for n in QKV]


@pytest.mark.parametrize("kind", ["torchvision", "open-clip"])
@pytest.mark.parametrize("layers", ["auto", "all"])
def test_torchs_own_attention_is_not_adapted(layers: Any, kind: str) -> None:
    """Source: the names of these nets' linear layers and convolutions, without the attention's."""
    task = task_on(kind)
    mlp, first = {"torchvision": ("encoder.layers.encoder_layer_{i}.mlp.{j}", "conv_proj"),
                  "open-clip": ("transformer.resblocks.{i}.mlp.{j}", "conv1")}[kind]  # fmt: skip
    inner = ("0", "3") if kind == "torchvision" else ("c_fc", "c_proj")
    names = {first} | {mlp.format(i=i, j=j) for i in (0, 1) for j in inner}
    result = LowRankAdaptation(layers=layers, train_head=False, lr_scale=10.0).finetune(task)
    assert set(changed(result, task.pretrained)) == {f"encoder.{name}.weight" for name in names}


def test_q_v_is_low_rank_updates_of_queries_and_values_trained_by_hand() -> None:
    """Source: explicit A and B for Q and V of each block in plain torch; A from U(±1/√width)."""
    task = task_on("timm", steps=3)
    encoder, s = task.pretrained.copy().encoder, 3.0 / 2
    with task.seeded("lora"):
        a = [torch.empty(2, 12).uniform_(-(12**-0.5), 12**-0.5) for _ in range(4)]
    b = [torch.zeros(12, 2, requires_grad=True) for _ in range(4)]
    a = [one.requires_grad_(True) for one in a]
    old = [encoder.get_parameter(f"{name}.weight").detach() for name in QKV]

    def weights() -> dict[str, Tensor]:
        parts = [s * up @ down for up, down in zip(b, a, strict=True)]
        updates = [torch.cat([parts[i], torch.zeros(12, 12), parts[i + 1]]) for i in (0, 2)]
        return {f"{n}.weight": w + u for n, w, u in zip(QKV, old, updates, strict=True)}

    def features(x: Tensor) -> Tensor:
        return torch.func.functional_call(encoder, weights(), x)

    head, _ = train_by_hand(task, features, [*a, *b], 0.5)
    result = LowRankAdaptation(2, 3.0, "q-v", lr_scale=10.0).finetune(task)
    assert_near(result.head.state_dict(), head.state_dict())
    for name, expected in weights().items():
        assert_near(result.encoder.get_parameter(name), expected, atol=5e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_q_v_leaves_the_keys_and_has_the_rank_it_says(rank: int) -> None:
    """Source: the rows of the fused layer; singular values by numpy."""
    task = task_on("timm", steps=3)
    result = LowRankAdaptation(rank, layers="q-v", lr_scale=10.0).finetune(task)
    assert set(changed(result, task.pretrained)) == {f"encoder.{n}.weight" for n in QKV} | {*HEAD}
    for name in QKV:
        new, old = (m.encoder.get_parameter(f"{name}.weight") for m in (result, task.pretrained))
        assert torch.equal(new[12:24], old[12:24])
        for rows in (slice(0, 12), slice(24, 36)):
            values = np.linalg.svd((new - old).detach().double().numpy()[rows], compute_uv=False)
            assert values[rank] < 1e-6 < 1e-4 < values[rank - 1]


@pytest.mark.parametrize("layers", ["auto", "q-v"])
def test_the_first_update_grows_with_the_square_of_alpha_over_rank(layers: Any) -> None:
    """Source: B₁ = −lr s G Aᵀ, so the update is s B₁ A = −lr s² G Aᵀ A, with s = alpha / rank."""
    updates = []
    for alpha in (4.0, 12.0):
        task = task_on("timm", steps=1, lr=0.5)
        result = LowRankAdaptation(2, alpha, layers, train_head=False, lr_scale=10.0).finetune(task)
        name = f"encoder.{QKV[0]}.weight"
        updates.append(result.state_dict()[name] - task.pretrained.state_dict()[name])
    assert_near(updates[1], 9 * updates[0], atol=1e-5)
    assert updates[0].abs().max() > 1e-3


def test_vera_has_an_update_of_its_rank_and_boft_keeps_angles_between_rows() -> None:
    """Source: singular values and cosines by numpy, of the merged weights."""
    task = task_on("timm", steps=3)
    name = f"{QKV[1]}.weight"
    old = task.pretrained.encoder.get_parameter(name).detach().double().numpy()
    new = VectorAdaptation(rank=2).finetune(task).encoder.get_parameter(name)
    values = np.linalg.svd(new.detach().double().numpy() - old, compute_uv=False)
    assert values[2] < 1e-6 < 1e-4 < values[1]
    rotated = ButterflyFinetuning(lr_scale=10.0).finetune(task).encoder.get_parameter(name)
    directions = [w / np.linalg.norm(w, axis=1, keepdims=True)
                  for w in (old, rotated.detach().double().numpy())]  # fmt: skip
    np.testing.assert_allclose(*[d @ d.T for d in directions], atol=1e-5)
    assert np.abs(directions[0] - directions[1]).max() > 1e-3


# visual-prompt


def test_the_border_at_224_has_the_papers_number_of_parameters() -> None:
    """Source: arXiv:2203.17274, 2 · 3 · 30 · (224 + 224 − 60); and the share of 224 elsewhere."""
    for size, pad, count in ((224, 30, 69_840), (112, 15, 17_460), (8, 1, 84)):
        preprocess = Preprocess(size=size, mean=TINY.mean, std=TINY.std)
        small = Classifier(nn.Flatten(), nn.Identity(), preprocess)
        borders = VisualPrompt().rebuild(small).encoder.borders
        assert sum(border.numel() for border in borders) == count  # type: ignore[union-attr]
        assert borders[0].shape == (3, pad, size)  # type: ignore[index]


@pytest.mark.parametrize("pad", [1, 3, 4])
def test_the_border_is_learned_by_gradient_steps_on_the_outer_pixels(pad: int) -> None:
    """Source: SGD on a full δ in plain torch, its gradient masked; in eval mode."""
    task = tiny_task(**WHOLE, epochs=3)  # with batch-norm and dropout, which must not act
    mask = torch.ones(3, 8, 8)
    mask[:, pad : 8 - pad, pad : 8 - pad] = 0
    delta = torch.zeros(3, 8, 8, requires_grad=True)
    encoder = task.pretrained.encoder
    _, logits = train_by_hand(
        task, lambda x: encoder(x + mask * delta), [delta], 2.0, train_head=False
    )
    result = VisualPrompt(pad, lr=2.0).finetune(task)
    assert_near(result.encoder.delta(), mask * delta)  # type: ignore[operator]
    assert not (result.encoder.delta() * (1 - mask)).any()  # type: ignore[operator]
    assert (delta * mask).abs().max() > 1e-2
    assert_near(logits_of(result, task), logits, atol=1e-4)
    assert_near(result.head.state_dict(), task.pretrained.head.state_dict(), atol=0)


# vpt


def prompted(kind: str, model: nn.Module, x: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """Features with prompts behind the class token, written out. One prompt is shallow."""
    m: Any = model
    prefix, n = int(kind != "timm-average"), len(prompts[0])
    if kind.startswith("timm"):
        x, token, place, blocks = m.patch_embed(x), m.cls_token, m.pos_embed, m.blocks
    elif kind == "torchvision":
        x, token, place = m.conv_proj(x), m.class_token, m.encoder.pos_embedding
        x, blocks = x.flatten(2).transpose(1, 2), m.encoder.layers
    else:
        x, token, place = m.conv1(x), m.class_embedding[None, None], m.positional_embedding
        x, blocks = x.flatten(2).transpose(1, 2), m.transformer.resblocks
    x = (torch.cat([token.expand(len(x), -1, -1), x], 1) if prefix else x) + place
    x = m.ln_pre(x) if kind == "open-clip" else x
    for i, block in enumerate(blocks):
        if i < len(prompts):
            images = x[:, -4:]  # four patches
            x = torch.cat([x[:, :prefix], prompts[i].expand(len(x), -1, -1), images], 1)
        x = block(x)
        assert x.shape[1] == prefix + n + 4
    if kind == "timm-average":
        return m.fc_norm(m.norm(x)[:, -4:].mean(1))
    if kind == "timm":
        return m.norm(x)[:, 0]
    return m.encoder.ln(x)[:, 0] if kind == "torchvision" else m.ln_post(x)[:, 0] @ m.proj


@pytest.mark.parametrize("depth", ["shallow", "deep"])
@pytest.mark.parametrize("kind", ["timm", "timm-average", "torchvision", "open-clip"])
def test_prompts_are_tokens_trained_behind_the_class_token(kind: str, depth: Any) -> None:
    """Source: the forward pass of these transformers and SGD, written out."""
    method, task = VisualPromptTuning(tokens=3, depth=depth, lr_scale=10.0), task_on(kind)
    prompts = [*leaves(method.finetune(task_on(kind, steps=0)), ".prompts").values()]
    assert len(prompts) == {"shallow": 1, "deep": 2}[depth]
    encoder = task.pretrained.encoder
    head, logits = train_by_hand(task, lambda x: prompted(kind, encoder, x, prompts), prompts, 0.5)
    result = method.finetune(task)
    assert_near(logits_of(result, task), logits, atol=1e-4)
    assert_near([*leaves(result, ".prompts").values()], prompts)
    assert_near(result.head.state_dict(), head.state_dict())


def test_prompts_begin_uniform_in_a_range_made_from_patch_and_width() -> None:
    """Source: U(−v, v) with v = √(6 / (3 · 4² + 12)), the paper's; its mean and deviation."""
    method = VisualPromptTuning(tokens=1000, depth="deep", lr_scale=10.0)
    drawn = [*leaves(method.finetune(task_on("timm", steps=0)), ".prompts").values()]
    values, v = torch.cat(drawn).detach().numpy(), math.sqrt(6 / 60)
    assert 0.999 * v < values.max() <= v and -v <= values.min() < -0.999 * v
    assert abs(values.mean()) < 0.01 * v
    assert values.std() == pytest.approx(v / math.sqrt(3), rel=0.01)
    assert not torch.equal(*drawn)


# adapter, moa


def vit_by_hand(m: Any, mlp: Callable[[int, nn.Module, Tensor], Tensor]) -> Any:
    """timm's forward pass, with another MLP."""

    def features(x: Tensor) -> Any:
        x = m.patch_embed(x)
        x = torch.cat([m.cls_token.expand(len(x), -1, -1), x], 1) + m.pos_embed
        for i, block in enumerate(m.blocks):
            x = x + block.attn(block.norm1(x))
            x = x + mlp(i, block.mlp, block.norm2(x))
        return m.norm(x)[:, 0]

    return features


@pytest.mark.parametrize(("reduction", "narrow"), [(4, 3), (100, 1)])
def test_an_adapter_is_a_bottleneck_behind_the_mlp(reduction: int, narrow: int) -> None:
    """Source: h + up(GELU(down(h))) with the error function, and SGD, written out."""
    method, task = Adapters(reduction, lr_scale=10.0), task_on("timm", steps=3)
    start = method.finetune(task_on("timm", steps=0))
    own = leaves(start, ".down.") | leaves(start, ".up.")
    assert sum(p.numel() for p in own.values()) == 2 * (2 * 12 * narrow + narrow + 12)

    def mlp(i: int, old: nn.Module, x: Tensor) -> Tensor:
        h, name = old(x), f"encoder.blocks.{i}.mlp"
        z = h @ own[f"{name}.down.weight"].T + own[f"{name}.down.bias"]
        z = 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
        return h + z @ own[f"{name}.up.weight"].T + own[f"{name}.up.bias"]

    features = vit_by_hand(task.pretrained.encoder, mlp)
    _, logits = train_by_hand(task, features, [*own.values()], 0.5)
    result = method.finetune(task)
    assert_near(logits_of(result, task), logits, atol=1e-4)
    ours = dict(result.named_parameters())
    assert_near({name: ours[name] for name in own}, own)
    assert set(changed(result, start)) == {*own, *HEAD}


#: What the authors' code gives; see make_authors.py.
AUTHORS = json.loads(Path(__file__).with_name("authors.json").read_text())


def mixture_of(recorded: dict[str, Any]) -> Mixture:
    """A layer with experts, with recorded weights."""
    mixture = Mixture(nn.Linear(6, 5), (1, 2, 4, 8)).double()
    mixture.linear.weight.data = torch.tensor(recorded["weight"]).double()
    mixture.linear.bias.data = torch.tensor(recorded["bias"]).double()
    for mine, theirs in ((mixture.down, recorded["down"]), (mixture.up, recorded["up"])):
        for expert, values in zip(mine, theirs, strict=True):
            expert.data = torch.tensor(values).double()
    for name in ("route", "route_bias", "embeddings", "sharpness"):
        mixture.get_parameter(name).data = torch.tensor(recorded[name]).double()
    return mixture


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_mixture_is_the_authors(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: authors.json: outputs, and the auxiliary loss with its weight of 0.01."""
    recorded = AUTHORS["moa"]
    mixture = mixture_of(recorded).train(mode == "train")
    noise = torch.tensor(recorded["noise"]).double()
    monkeypatch.setattr(torch, "randn_like", lambda of: noise)
    out = mixture(torch.tensor(recorded["x"]).double())
    expected = torch.tensor(recorded[mode]).double()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-7)  # their gate is in float32
    if mode == "train":
        assert mixture.unbalance is not None
        assert 0.01 * mixture.unbalance.item() == pytest.approx(recorded["aux_train"], rel=1e-3)
    else:
        assert mixture.unbalance is None


def test_the_auxiliary_loss_is_0_in_balance_and_grows_in_collapse() -> None:
    """Source: by hand: CV² of (1, 1, 1) is 0, of (3, 0, 0) it is 3 with n − 1 in the variance."""
    even = torch.full((3, 3), 1 / 3)
    assert unbalance(even, even[:, :1], 0.25).item() == pytest.approx(0, abs=1e-6)
    one = torch.tensor([[1.0, 0, 0]]).expand(3, 3)
    # The threshold is far below the one's share and far above the others'.
    assert unbalance(one, one[:, :1] / 2, 0.01).item() == pytest.approx(3, rel=1e-6)


def test_experts_sit_in_the_attention_of_every_second_block() -> None:
    """Source: the authors' code, `ii % 4` over the attention's two layers."""
    result = MixtureOfAdapters().rebuild(tiny_vit())
    places = [n for n, m in result.named_modules() if isinstance(m, Mixture)]
    assert places == ["encoder.blocks.0.attn.qkv", "encoder.blocks.0.attn.proj"]


@pytest.mark.parametrize("aux", [0.0, 0.5])
def test_experts_and_routers_are_trained_by_hand(
    aux: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: experts picked by index and SGD in plain torch; no noise, so nothing is drawn."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    method = MixtureOfAdapters((1, 3), aux, lr_scale=10.0)
    task = task_on("timm", 3, lr=0.2)  # later steps magnify rounding
    start = method.finetune(task_on("timm", steps=0))
    own = {n: p for n, p in leaves(start, ".attn.").items() if "blocks.0" in n}
    own = {n: p for n, p in own.items() if ".linear." not in n}
    unbalanced: list[Any] = []

    def mixed(name: str, linear: Any, x: Tensor) -> Tensor:
        parts = ("route", "route_bias", "embeddings", "sharpness",
                 "down.0", "up.0", "down.1", "up.1")  # fmt: skip
        w, b, e, sharpness, *experts = (
            own[f"encoder.blocks.0.attn.{name}.{part}"] for part in parts
        )
        keys = x @ w.T + b
        cosines = F.cosine_similarity(keys[..., None], e, dim=-2)
        p = (sharpness.exp() * cosines).softmax(-1)
        best, k = p.max(-1, keepdim=True)
        load = torch.distributions.Normal(0, 0.5).cdf(p - best)
        unbalanced.append(
            sum(t.var() / t.mean() ** 2 for t in (q.sum((0, 1)) for q in (p, load))) / 2
        )
        outputs = [x @ down.T @ up.T for down, up in (experts[:2], experts[2:])]
        return linear(x) + best * torch.where(k == 0, outputs[0], outputs[1])  # type: ignore[no-any-return]

    m: Any = task.pretrained.encoder

    def attention(block: Any, x: Tensor) -> Tensor:
        attn = block.attn
        n, t, d = x.shape
        qkv = mixed("qkv", attn.qkv, x).reshape(n, t, 3, attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        joined = (weights @ v).transpose(1, 2).reshape(n, t, d)
        return mixed("proj", attn.proj, joined)

    def features(x: Tensor) -> Any:
        x = m.patch_embed(x)
        x = torch.cat([m.cls_token.expand(len(x), -1, -1), x], 1) + m.pos_embed
        for i, block in enumerate(m.blocks):
            y = block.norm1(x)
            x = x + (attention(block, y) if i == 0 else block.attn(y))
            x = x + block.mlp(block.norm2(x))
        return m.norm(x)[:, 0]

    def extra() -> Any:
        loss = aux * sum(unbalanced)
        unbalanced.clear()
        return loss

    train_by_hand(task, features, [*own.values()], 2.0, extra)
    result = dict(method.finetune(task).named_parameters())
    assert_near({name: result[name] for name in own}, own, atol=1e-4)
    begun = leaves(start, ".route")
    assert max((result[name] - p).abs().max() for name, p in begun.items()) > 1e-5


# sparse-lowrank


@pytest.mark.parametrize(("kind", "name"), [("timm", "blocks.1.attn.qkv"), ("conv", "0")])
def test_both_updates_are_added_to_the_weight(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: the sum, and the places of the largest entries, in numpy."""
    task, caught = task_on(kind), []

    def fit(model: Classifier, **recipe: Any) -> Classifier:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, parameter in model.encoder.named_parameters():
                if parameter.requires_grad:
                    caught.append(key)
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        layer = model.encoder.get_submodule(name)
        (update,) = layer.parametrizations.weight  # type: ignore[union-attr, misc]
        caught.append({key: getattr(update, key).detach().numpy() for key in ("a", "b", "s")})
        return model

    monkeypatch.setattr(task, "fit", fit)
    result = SparseLowRank(2, 3.0, sparse=4).finetune(task)
    parts = caught.pop()
    assert all(key.rpartition(".")[2] in ("a", "b", "s") for key in caught)
    before = task.pretrained.encoder.get_submodule(name).weight.detach().double().numpy()  # type: ignore[operator, union-attr]
    expected = before.reshape(len(before), -1) + 1.5 * parts["b"].astype(float) @ parts["a"]
    places = np.argsort(-np.abs(before).ravel())[:4]
    expected.ravel()[places] += parts["s"]
    after = result.encoder.get_submodule(name).weight.detach().numpy()  # type: ignore[operator, union-attr]
    np.testing.assert_allclose(after.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


# nmtune


@pytest.mark.parametrize("case", AUTHORS["nmtune"]["cases"])
def test_its_regularisation_is_the_authors_three_terms(case: dict[str, Any]) -> None:
    """Source: authors.json; more features than images, and fewer."""
    z, new = torch.tensor(case["before"]), torch.tensor(case["after"])
    terms = [case["mse"], case["cov"], case["svd"]]
    for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0.7, 0.2, 3.0)):
        got = NoisyModelTuning(*weights).regularisation(z, new)
        assert got.item() == pytest.approx(np.dot(weights, terms), rel=1e-5)


@pytest.mark.parametrize("kind", ["conv with batch-norm", "timm"])
def test_it_is_adamw_on_the_residual_net_and_the_head(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: torch's AdamW on the images, written out; and `task.fit` on the images."""
    method = NoisyModelTuning(2.0, 5.0, 0.3, lr=0.01, epochs=5)
    task = tiny_task(**WHOLE) if kind.startswith("conv") else task_on(kind)
    x, y = inputs_of(task.images), torch.tensor(task.images.labels)
    result = method.finetune(task)
    start = NoisyModelTuning(epochs=0).finetune(task)
    head: Any = start.head
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=1e-4)
    z = task.pretrained.features(x).detach()
    for _ in range(5):
        first, last = head.refine[0], head.refine[2]
        hidden = (z @ first.weight.T + first.bias).clamp_min(0)
        new = z + hidden @ last.weight.T + last.bias
        values, covariance = torch.linalg.svdvals(new), torch.cov(new.T)
        off = covariance - covariance.diagonal().diag()
        loss = F.cross_entropy(head.head(new), y) - 0.3 * values[:5].mean() / values.sum()
        loss = loss + 5 * off.square().sum() / z.shape[1]
        loss = loss + 2 * (2 - 2 * F.cosine_similarity(new, z)).mean() / z.shape[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_near(result.state_dict(), start.state_dict(), atol=2e-4)
    once = method.finetune(tiny_task(pretrained=task.pretrained))  # in batches of 8
    monkeypatch.setattr(Task, "repeats_images", property(lambda self: False))
    every_step = method.finetune(tiny_task(pretrained=task.pretrained))
    assert_near(once.state_dict(), every_step.state_dict(), atol=2e-4)


# bitfit

BIASES = ["encoder.patch_embed.proj.bias", "encoder.norm.bias"] + [
    f"encoder.blocks.{i}.{name}.bias"
    for i in (0, 1)
    for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
]


@pytest.mark.parametrize(
    ("start", "names"),
    [(tiny_vit, BIASES), (tiny_classifier, ["encoder.0.bias", "encoder.1.bias"])],
    ids=["vit", "conv"],
)
def test_bitfit_trains_these_biases_and_the_head(
    start: Any, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: the names in timm's transformer and in the convolutional net, written out."""
    seen: list[str] = []

    def fit(self: Task, model: Classifier, **recipe: Any) -> Classifier:
        seen.extend(name for name, p in model.named_parameters() if p.requires_grad)
        assert recipe == {"lr": pytest.approx(0.05 * 3)}
        return model

    monkeypatch.setattr(Task, "fit", fit)
    BitFit(lr_scale=3).finetune(tiny_task(pretrained=start(), lr=0.05))
    assert set(seen) == {*names, *HEAD}


# Wrong options

CLASSES = {
    "lora": LowRankAdaptation, "dora": WeightDecomposedAdaptation, "vera": VectorAdaptation,
    "boft": ButterflyFinetuning, "adapter": Adapters, "moa": MixtureOfAdapters, "bitfit": BitFit,
    "visual-prompt": VisualPrompt, "vpt": VisualPromptTuning, "nmtune": NoisyModelTuning,
}  # fmt: skip
WRONG: list[tuple[str, dict[str, Any], str]] = [
    *((n, {"rank": 0}, "rank ≥ 1, got 0") for n in ("lora", "dora", "vera")),
    *((n, {"lr_scale": 0}, "lr_scale > 0, got 0") for n in CLASSES if n[:2] not in ("vi", "nm")),
    ("boft", {"block_size": 1}, "block_size ≥ 2, got 1"),
    ("boft", {"block_size": 5}, "a block_size that divides 12, got 5"),
    ("boft", {"factors": 0}, "factors ≥ 1, got 0"),
    ("adapter", {"reduction": 0}, "reduction ≥ 1, got 0"),
    ("moa", {"ranks": ()}, "ranks ≥ 1, got ()"),
    ("moa", {"ranks": (2, 0)}, "ranks ≥ 1, got (2, 0)"),
    ("moa", {"aux": -1}, "aux ≥ 0, got -1"),
    ("moa", {"ranks": (2,)}, "two ranks at least, got (2,)"),
    ("moa", {"temperature": 0}, "temperature ≥ 0.01, got 0"),
    ("visual-prompt", {"pad": 0}, "pad ≥ 1 or none, got 0"),
    ("visual-prompt", {"pad": 5}, "pad ≤ 4 for images of 8, got 5"),
    ("visual-prompt", {"lr": 0}, "lr > 0 or none, got 0"),
    ("vpt", {"tokens": 0}, "tokens ≥ 1, got 0"),
    ("nmtune", {"covariance": -1}, "weights ≥ 0, got (1.0, -1, 0.001)"),
    ("nmtune", {"lr": 0}, "lr > 0, weight_decay ≥ 0 and epochs ≥ 0, got (0, 0.0001, 30)"),
    ("nmtune", {"epochs": -1}, "lr > 0, weight_decay ≥ 0 and epochs ≥ 0, got (0.001, 0.0001, -1)"),
]


@pytest.mark.parametrize(("name", "options", "told"), WRONG)
def test_a_wrong_option_is_told(name: str, options: dict[str, Any], told: str) -> None:
    """Source: the form of these messages; two of them need the net to know."""
    with pytest.raises(ConfigError) as caught:
        CLASSES[name](**options).finetune(task_on("timm", steps=0))
    assert str(caught.value) == f"{name}: expected {told}."


def test_every_border_starts_from_noise_of_its_own() -> None:
    """Source: the start, with no step; of one shape are two and two."""
    result = VisualPrompt(start="noise").finetune(tiny_task(epochs=0))
    top, bottom, left, right = result.encoder.borders
    assert not torch.equal(top, bottom) and not torch.equal(left, right)


def test_what_moa_makes_can_be_copied() -> None:
    """Source: its logits; no graph of the last step is left in it."""
    result = MixtureOfAdapters(lr_scale=10.0).finetune(tiny_task(pretrained=tiny_vit()))
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(result.copy().eval()(images), result(images))


def test_a_layer_with_the_name_of_the_end_of_another_is_adapted_alone() -> None:
    """Source: the weights that change: `0` is not `1.0`."""
    encoder = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    )  # fmt: skip
    pretrained = Classifier(encoder, nn.Linear(32, 10), TINY).eval()
    result = LowRankAdaptation(train_head=False, lr_scale=10.0).finetune(
        tiny_task(pretrained=pretrained)
    )
    before, after = pretrained.state_dict(), result.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["encoder.0.weight"]
