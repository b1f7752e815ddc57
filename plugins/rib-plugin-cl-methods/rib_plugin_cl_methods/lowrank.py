"""peft's adapters on an encoder: put in, trained, merged. For LoRA and its relatives."""

import re
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

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


def fit_adapters(
    task: Task,
    name: str,
    config: Callable[[str], Any],
    layers: list[str],
    *,
    train_head: bool,
    lr_scale: float,
) -> Classifier:
    """Train peft's adapters of these layers, and merge them into the weights.

    Args:
        task: its pretrained classifier is copied.
        name: of the generator that the adapters are drawn from.
        config: pattern of the names of layers → peft's configuration.
        layers: names of modules of the encoder.
        train_head: whether the head trains too.
        lr_scale: learning rate as a multiple of the recipe's.

    Returns:
        A classifier of the backbone's architecture.
    """
    expect(bool(layers), name, "an encoder with linear layers or convolutions", "none")
    model = task.pretrained.copy()
    # A pattern of whole names: peft takes a list's for suffixes too.
    tuned = with_adapters(task, name, model.encoder, config("|".join(map(re.escape, layers))))
    model.encoder = tuned
    model.head.requires_grad_(train_head)
    task.report(adapted=len(layers))
    model = task.fit(model, lr=task.recipe.lr * lr_scale)
    model.encoder = tuned.merge_and_unload(safe_merge=True)
    return model.requires_grad_(True).eval()


def with_adapters(task: Task, name: str, encoder: nn.Module, config: Any) -> Any:
    """peft's model around the encoder; the encoder's own weights are frozen."""
    from peft import get_peft_model

    with task.seeded(name), warnings.catch_warnings():
        # BOFT tries to compile a CUDA kernel, with tools that Python deprecates, and says so where
        # it cannot; torch then does it.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Failed to load the CUDA extension")
        warnings.filterwarnings("ignore", "Setting boft_n_butterfly_factor to 1")
        return get_peft_model(encoder, config)
