"""Adapters in an encoder, peft's or one's own: put in, trained, merged. For LoRA and its kin."""

import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from rib_harness import Classifier, Task, transformer_of
from rib_plugin_cl_methods.checks import expect


def attention_layers(encoder: nn.Module) -> list[str]:
    """Names of the fused `qkv` layers of a transformer's attention; none in another net."""
    transformer = transformer_of(encoder)
    blocks = [] if transformer is None else list(transformer.blocks)
    wanted = {id(getattr(getattr(block, "attn", None), "qkv", None)) for block in blocks}
    return [name for name, m in encoder.named_modules() if id(m) in wanted and m is not None]


def all_layers(encoder: nn.Module) -> list[str]:
    """Names of all linear layers and ungrouped convolutions.

    Not those inside torch's own multi-head attention, which reads their weights past any adapter.
    """
    inside = {
        id(child)
        for module in encoder.modules()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.modules()
    }
    return [
        name
        for name, module in encoder.named_modules()
        if id(module) not in inside
        and (
            isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        )
    ]


def exactly(layers: Iterable[str]) -> str:
    """peft's `target_modules` for these names: it takes those of a list for suffixes too."""
    return "|".join(map(re.escape, layers))


def fit_adapters(task: Task, name: str, config: Any, *, lr: float, train_head: bool) -> Classifier:
    """Train peft's adapters on a copy of the pretrained classifier, and merge them.

    Args:
        task: the fine-tuning step.
        name: of the method, and of the generator that the adapters are drawn from.
        config: peft's configuration, with the layers of the encoder that it adapts.
        lr: learning rate.
        train_head: whether the head trains too.

    Returns:
        A classifier of the backbone's architecture.
    """
    expect(bool(config.target_modules), name, "linear layers or convolutions", "an encoder without")
    model = task.pretrained.copy()
    adapted = adapters_in(model.encoder, config, task, name)
    task.report(adapted=len(adapted.targeted_module_names))
    model.encoder = adapted
    model.head.requires_grad_(train_head)
    model = task.fit(model, lr=lr)
    model.encoder = adapted.merge_and_unload(safe_merge=True)
    return model.requires_grad_(True).eval()


def fit_updates(
    task: Task,
    name: str,
    layers: Iterable[str],
    update: Callable[[nn.Parameter], nn.Module],
    *,
    lr: float,
    train_head: bool,
) -> Classifier:
    """Train modules that are added to weights, on a copy of the pretrained classifier; merge them.

    Args:
        task: the fine-tuning step.
        name: of the method, and of the generator that the updates are drawn from.
        layers: of the encoder, by name.
        update: weight → a module that gives the weight with its update.
        lr: learning rate.
        train_head: whether the head trains too.

    Returns:
        A classifier of the backbone's architecture.
    """
    model = task.pretrained.copy()
    chosen = [model.encoder.get_submodule(layer) for layer in layers]
    expect(bool(chosen), name, "linear layers or convolutions", "an encoder without")
    model.encoder.requires_grad_(False)
    model.head.requires_grad_(train_head)
    with task.seeded(name):
        for layer in chosen:
            weight = layer.get_parameter("weight")
            parametrize.register_parametrization(layer, "weight", update(weight))
    task.report(adapted=len(chosen))
    model = task.fit(model, lr=lr)
    for layer in chosen:
        parametrize.remove_parametrizations(layer, "weight")  # merged
    return model.requires_grad_(True)


def adapters_in(encoder: nn.Module, config: Any, task: Task, name: str) -> Any:
    """peft's model around the encoder, whose own weights are frozen."""
    from peft import get_peft_model

    with task.seeded(name), warnings.catch_warnings():
        # BOFT tries to compile a CUDA kernel, with tools that Python deprecates, and says so where
        # it cannot; torch then does it.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Failed to load the CUDA extension")
        warnings.filterwarnings("ignore", "Setting boft_n_butterfly_factor to 1")
        return get_peft_model(encoder, config)
