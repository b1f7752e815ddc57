"""What trains, where each begins, and that it learns: every method, on each net that it takes.

What the harness asks of every method is in `test_conformance.py`, on these nets too; what each
computes is tested beside this, against sources of its own.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rib_harness
from rib_harness import Classifier, Task, TextTower, load_catalog, members_of
from rib_harness.engine.fit import _Fit
from rib_harness.testing import tiny_classifier, tiny_clip, tiny_images, tiny_task, tiny_vit

NETS: dict[str, Callable[[], Classifier]] = {
    "vit": tiny_vit,
    "conv": tiny_classifier,
    "clip": lambda: tiny_clip()[0],
}
BOTH, VIT, CONV, CLIP = ("vit", "conv"), ("vit",), ("conv",), ("clip",)
EVERY = (*BOTH, *CLIP)
ALL, HEAD = r".*", r"head\..*"


@dataclass(frozen=True)
class Case:
    """One method with options that suit the tiny nets.

    Args:
        options: as a user writes them.
        trains: pattern of the names of what trains, in the net that is trained.
        nets: on which it works; it refuses the others.
        fits: how many fits it makes itself.
        exact: whether without any step its result is the pretrained classifier.
    """

    options: str = ""
    trains: str = ALL
    nets: tuple[str, ...] = BOTH
    fits: int = 1
    exact: bool = True


ADAPTERS = r"(encoder\..*(lora|vera|boft).*|head\..*)"
CASES = {
    "ft": Case(),
    "lp": Case(trains=HEAD),
    "lp-ft": Case(),
    "ema": Case(),
    "freeze-embed": Case(nets=EVERY, trains=r"(?!encoder\.(patch_embed|0|1)\.).*"),
    "bitfit": Case("lr_scale=1", trains=r"(.*bias|head\..*)"),
    "lora": Case("lr_scale=1,rank=2,alpha=2", trains=ADAPTERS),
    "lora:layers=q-v": Case(
        "lr_scale=1,layers=q-v,rank=2,train_head=false", r".*\.qkv\.param.*\.0\.[ab]", VIT
    ),
    "sparse-lowrank": Case(
        "lr_scale=1,rank=2,sparse=3", r"(encoder\..*\.weight\.0\.[abs]|head\..*)"
    ),
    "dora": Case("lr_scale=1,rank=2,alpha=2", trains=ADAPTERS),
    "vera": Case("lr_scale=1,rank=4", trains=ADAPTERS, nets=VIT),
    "boft": Case("lr_scale=1", trains=ADAPTERS, nets=VIT),
    "adapter": Case(
        "lr_scale=1,reduction=2", r"(encoder\..*\.mlp\.(down|up)\..*|head\..*)", nets=VIT
    ),
    "moa": Case(
        "lr_scale=1,ranks=1+2",
        r"(encoder\..*\.attn\..*\.(down|up|route|embed|sharp).*|head\..*)",
        nets=VIT,
    ),
    "visual-prompt": Case("lr=5", trains=r"encoder\.borders\..*"),
    "vpt": Case("lr_scale=1,tokens=3", r"(encoder\..*\.prompts|head\..*)", VIT, exact=False),
    "vpt:depth=deep": Case(
        "lr_scale=1,tokens=3,depth=deep", r"(encoder\..*\.prompts|head\..*)", VIT, exact=False
    ),
    "nmtune": Case("lr=0.01,epochs=3", trains=HEAD),
    "levi": Case("lr_scale=1,width=4", r"(encoder\.(small|adapt)\..*|head\..*)", EVERY),
    "l2-sp": Case(),
    "l1-sp": Case(),
    "ewc": Case("images=8"),
    "mas": Case("images=8,lambda=0.01"),
    "pretraining-data": Case("data=old", nets=EVERY),
    "si": Case("old=old,c=0.001", fits=2),
    "layer-decay": Case("decay=0.9", nets=EVERY),
    "auto-rgn": Case(trains=r"(?!encoder\.1\.).*", nets=EVERY),
    "tpgm": Case("iterations=6", fits=0),
    "ftp": Case(),
    "spd": Case(nets=EVERY),
    "mixout": Case("p=0.5", nets=EVERY),
    "lwf": Case(),
    "feature-distill": Case(),
    "dp-transfer": Case("teacher=another", nets=EVERY),
    "self-distillation": Case(nets=EVERY, fits=3),
    "fsr": Case(nets=EVERY),
    "twins": Case(trains=r"(encoder|head|twins)\..*", nets=CONV),
    "twins:eps=0.1": Case("eps=0.1", r"(encoder|head|twins)\..*", CONV),
    "ldifs": Case(nets=EVERY),
    "wise-ft": Case(fits=0),
    "lines": Case(nets=EVERY, fits=0),
    "soup": Case(fits=0),
    "greedy-soup": Case(fits=0),
    "model-stock": Case(fits=0),
    "ensemble": Case(nets=EVERY, fits=0, exact=False),
    "ensemble:average=logits": Case("average=logits", nets=EVERY, fits=0),
    "dawin": Case(nets=EVERY, fits=0),
    "dawin:space=outputs": Case("space=outputs", nets=EVERY, fits=0, exact=False),
    "best-of": Case("members=ft+lwf", fits=0),
    "flyp": Case("lr=0.01", r"(encoder|text)\..*", CLIP),
    "carot": Case("lr=0.01,orthogonality=0.01", r"(encoder|text)\..*", CLIP),
    "lipsum-ft": Case("lambda=0.001", nets=CLIP),
    "car-ft": Case(nets=CLIP),
    "clipood": Case("lr=0.01", r"encoder\..*", CLIP),
}
PAIRS = [(name, net) for name, case in CASES.items() for net in case.nets]
FITTING = [(name, net) for name, net in PAIRS if CASES[name].fits]

every_method = pytest.mark.parametrize(("name", "net"), PAIRS)
every_fitting_method = pytest.mark.parametrize(("name", "net"), FITTING)


@cache
def bound(name: str) -> Any:
    options = CASES[name].options
    return load_catalog().bind("method", name.split(":")[0] + (f":{options}" if options else ""))


def method(name: str) -> Any:
    return bound(name).build()


def filled(name: str, what: str) -> list[str]:
    """The references that the method's spec declares, filled from its options."""
    texts = [text.format_map(bound(name).options) for text in getattr(bound(name).spec, what)]
    members = [one for text in texts for one in members_of(text.removeprefix("*"))]
    return [one for one in members if one != "pretrained"]


def task_for(name: str, net: str, **arguments: Any) -> Task:
    """A tiny task with all that the method declares."""
    seeds = {"ft@1": ("ft", 1)}
    epochs = arguments.get("epochs", 3)
    needs = {
        reference: made(*seeds.get(reference, (reference, 0)), net, epochs)
        for reference in filled(name, "needs")
    }
    text: TextTower | None = tiny_clip()[1] if net == "clip" else None
    return tiny_task(
        pretrained=NETS[net](),
        checkpoints=needs,
        methods={reference: method(reference) for reference in filled(name, "calls")},
        datasets={"old": tiny_images(16, seed=7)},
        teachers={"another": tiny_classifier(seed=5)},
        held=tiny_images(12, seed=9),
        text=text,
        **arguments,
    )


@cache
def made(name: str, seed: int, net: str, epochs: int = 3) -> Classifier:
    """What a method makes; the tests only read it."""
    return method(name).finetune(task_for(name, net, seed=seed, epochs=epochs))


def probe() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def answers(model: Classifier) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(probe())
    return logits


def loss_on(task: Task, model: Classifier) -> float:
    with torch.no_grad():
        parts = [task.cross_entropy(model.eval(), batch) * len(batch) for batch in task.batches()]
    return float(torch.stack(parts).sum()) / len(task.images)


def assert_same(left: nn.Module, right: nn.Module) -> None:
    torch.testing.assert_close(left.state_dict(), right.state_dict(), rtol=0, atol=0)


def test_every_method_of_the_plugin_is_here() -> None:
    """Source: what the plugin offers."""
    offered = {c.spec.name for c in load_catalog().list("method") if c.plugin.name == "cl-methods"}
    assert offered == {name.split(":")[0] for name in CASES}


@every_fitting_method
def test_what_trains_is_what_the_method_says(
    name: str, net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: the table above; all else keeps its value, has no gradient and no optimizer state.

    Frozen parts are in eval mode: their dropout does not act, their batch-norm does not move.
    """
    seen: list[set[str]] = []
    original = _Fit.update

    def update(self: _Fit, batch: Any) -> Any:
        named = dict(self.model.named_parameters())
        training = {key for key, p in named.items() if p.requires_grad}
        before = {k: v.clone() for k, v in self.model.state_dict().items()}
        result = original(self, batch)
        optimized = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        assert optimized == {id(named[key]) for key in training}
        assert not [key for key in set(named) - training if named[key].grad is not None]
        frozen = [
            (path, module)
            for path, module in self.model.named_modules()
            if list(module.parameters()) and not any(p.requires_grad for p in module.parameters())
        ]
        assert not [path for path, module in frozen if module.training]
        after = self.model.state_dict()
        still = [f"{path}.{key}" for path, m in frozen for key in m.state_dict(keep_vars=True)]
        assert not [
            key for key in still if key in after and not torch.equal(after[key], before[key])
        ]
        seen.append(training)
        return result

    task = task_for(name, net, max_steps=2)
    monkeypatch.setattr(_Fit, "update", update)
    method(name).finetune(task)
    assert len(seen) == 2 * CASES[name].fits
    pattern = re.compile(CASES[name].trains)
    assert seen[-1] and all(pattern.fullmatch(key) for key in seen[-1])
    if CASES[name].trains == ALL:
        assert seen[-1] == dict(NETS[net]().named_parameters()).keys()
    if "head" in CASES[name].trains:
        assert any(key.startswith("head.") for key in seen[-1])


@every_method
def test_without_a_step_it_is_the_pretrained_classifier(name: str, net: str) -> None:
    """Source: the pretrained classifier's logits; vpt's prompts change them, as it says.

    Averages take batch-norm statistics anew, so only a net without it shows them unchanged.
    """
    task = task_for(name, net, epochs=0)
    fusion = not CASES[name].fits
    result = method(name).finetune(task)
    same = torch.allclose(answers(result), answers(task.pretrained), rtol=1e-4, atol=1e-5)
    if fusion and net == "conv" and bound(name).spec.mergeable and name != "best-of":
        start = dict(task.pretrained.named_parameters())
        for key, parameter in result.named_parameters():
            torch.testing.assert_close(parameter, start[key], rtol=1e-5, atol=1e-6)
    else:
        assert same == CASES[name].exact


@every_fitting_method
def test_the_loss_falls(name: str, net: str) -> None:
    """Source: cross-entropy over the fine-tuning set, before and after."""
    task = task_for(name, net, epochs=10)
    result = method(name).finetune(task)
    assert loss_on(task, result) < loss_on(task, task.pretrained) - 0.003


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["digits-vit", "digits-conv"])
def test_the_loss_falls_on_digits(backbone: str, tmp_path: Path) -> None:
    """Source: the history of each fit, its last epoch against its first.

    Each once: on the transformer those that need one.
    """
    net = "vit" if backbone == "digits-vit" else "conv"
    names = [name for name, n in FITTING if n == net and (net == "conv" or CASES[name].nets == VIT)]
    given = {
        "si": "si:old=digits-train",
        "pretraining-data": "pretraining-data:data=digits-train",
        "dp-transfer": "dp-transfer:teacher=digits-vit",
    }
    references = {name: given.get(name, name) for name in names}
    results = rib_harness.run(
        backbone=backbone,
        method=[references[name] for name in names],
        dataset=["digits-r", "digits-a"],
        recipe={"epochs": 4},
        limit=30,
        store=tmp_path / "store",
    )
    assert results
    for run in results:
        for key in run.record["finetune"].values():
            rows = [
                json.loads(line)
                for line in (tmp_path / f"store/steps/{key}/history.jsonl").read_text().splitlines()
            ]
            last = [row for row in rows if row["stage"] == rows[-1]["stage"]]
            assert last[-1]["loss"] < last[0]["loss"], run.method
