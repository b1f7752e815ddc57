"""Records what the authors' own code computes on random tensors: `clipood_dawin_twins.json`.

CLIPood: thuml/CLIPood at bc0d874; DaWin: naver-ai/dawin at 310e0e1; TWINS:
ziquanliu/CVPR2023-TWINS at dda0194; all as they are on GitHub, under torch 2.15.0. What is written
inside a training loop or beside heavy imports is taken out of its file by its syntax and executed.
Nothing of theirs is in this package. Run it again with

    python make_clipood_dawin_twins.py CLIPOOD DAWIN TWINS clipood_dawin_twins.json

each a clone, bare or not. Inputs are recorded too, so that nothing has to be drawn again. This file
is no test.
"""

import ast
import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import scipy as sp
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAMES: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "copy": copy, "sp": sp, "Tensor": Tensor}


def drawn(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def tree_of(clone: str, path: str) -> ast.Module:
    """A file of a clone, at its last commit."""
    text = subprocess.run(["git", "-C", clone, "show", f"HEAD:{path}"],
                          capture_output=True, text=True, check=True).stdout  # fmt: skip
    return ast.parse(text)


def named(tree: ast.Module, *names: str) -> list[Any]:
    """Classes and functions of a file."""
    return [n for n in tree.body if getattr(n, "name", "") in names]


def assigned(tree: ast.AST, *targets: str) -> list[Any]:
    """Statements that assign to these, in the order of the file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target) in targets:
                found.append(node)
    return sorted(found, key=lambda node: node.lineno)


def run(nodes: list[Any], **names: Any) -> dict[str, Any]:
    """Execute statements of a file over the given names."""
    module = ast.fix_missing_locations(ast.Module(nodes, []))
    scope = {**NAMES, **names}
    exec(compile(module, "authors", "exec"), scope)
    return scope


def clipood(clone: str) -> dict[str, Any]:
    """The loss of a batch, and the moving average of a weight that takes given values."""
    engine, main = tree_of(clone, "engine.py"), tree_of(clone, "main.py")
    features, text = drawn(7, 6), F.normalize(drawn(4, 6), dim=1)
    labels = torch.tensor([0, 3, 1, 1, 2, 0, 3])
    [train] = named(engine, "train")
    loss = run(
        assigned(train, "f", "y", "loss"), model=lambda x: x, x=features, text_features=text,
        labels=labels, args=SimpleNamespace(lam=0.3, temperature=20.0),
    )["loss"]  # fmt: skip
    path, averages = drawn(8, 3), {}
    for beta in (0.5, 2.0):
        names = {"args": SimpleNamespace(beta=beta), "total_iter": len(path) - 1}
        weight = run(assigned(main, "beta_dist", "weight_func"), **names)["weight_func"]
        average_of = run(named(engine, "GeneralMovingAverage"))["GeneralMovingAverage"]
        model = nn.Linear(3, 1, bias=False).double()
        model.weight.data = path[0][None].clone()
        average = average_of(model, weight)
        for value in path[1:]:
            model.weight.data = value[None].clone()
            average.update()
        averages[beta] = average.moving_avg.weight[0].tolist()
    return {
        "features": features.tolist(), "text": text.tolist(), "labels": labels.tolist(),
        "loss": loss.item(), "path": path.tolist(), "averages": averages,
    }  # fmt: skip


def dawin(clone: str) -> dict[str, Any]:
    """λ of logits of two models, without offset."""
    utils, main = tree_of(clone, "dawin_rft/utils.py"), tree_of(clone, "dawin_rft/main_dawin.py")
    zs, ft = drawn(9, 5, scale=3), drawn(9, 5, scale=3)
    compute = run(named(utils, "compute_sample_loss_uncertainty_acc"))
    labels = torch.zeros(9, dtype=torch.long)
    entropies = [compute["compute_sample_loss_uncertainty_acc"](z, labels)[2] for z in (zs, ft)]
    branches = [n for n in ast.walk(main) if isinstance(n, ast.If)]
    [branch] = [n for n in branches if "negexp_ent_ratio" in ast.unparse(n.test)]
    [no_offset] = [
        n.orelse for n in branches if ast.unparse(n.test) == "self.args.offset_adjustment"
    ]
    coef = run([*no_offset, *branch.body], self=SimpleNamespace(), zs_ent=entropies[0],
               ft_ent=entropies[1])["coef"]  # fmt: skip
    return {"old": zs.tolist(), "new": ft.tolist(), "entropies": [e.tolist() for e in entropies],
            "share": coef.tolist()}  # fmt: skip


def twins(clone: str) -> dict[str, Any]:
    """A layer of both networks in training, what it keeps, and the loss of its outputs."""
    resnet = tree_of(clone, "TWINS_high_res_data/robustness/imagenet_models/resnet.py")
    train = tree_of(clone, "TWINS_high_res_data/train-TWINS-AT.py")
    classes = named(resnet, "_FixBatchNorm", "FixBatchNorm2d", "MixBatchNorm2d")
    layer = run(classes)["MixBatchNorm2d"](4).double()
    start = {"weight": drawn(4), "bias": drawn(4), "mean": drawn(4), "var": drawn(4).square()}
    frozen = {"weight": drawn(4), "bias": drawn(4)}
    for norm, affine in ((layer, start), (layer.main_bn, frozen)):
        norm.weight.data, norm.bias.data = affine["weight"].clone(), affine["bias"].clone()
        norm.running_mean.copy_(start["mean"])
        norm.running_var.copy_(start["var"])
    layer.batch_type = "mix"
    x = drawn(6, 4, 2, 2)
    y = layer(x).mean((2, 3))
    label = torch.tensor([0, 1, 2, 3, 0, 1])
    loss = run(
        assigned(train, "loss_main", "loss_aux", "loss")[:3], outputs=y, targets=label,
        batch_size=6, args=SimpleNamespace(lambda_twins=0.4),
    )["loss"]  # fmt: skip
    return {
        "x": x.tolist(), "labels": label.tolist(), "loss": loss.item(), "y": y.tolist(),
        "start": {k: v.tolist() for k, v in start.items()},
        "frozen": {k: v.tolist() for k, v in frozen.items()},
        "mean": layer.running_mean.tolist(), "var": layer.running_var.tolist(),
        "frozen_mean": layer.main_bn.running_mean.tolist(),
    }  # fmt: skip


if __name__ == "__main__":
    GENERATOR = torch.Generator().manual_seed(0)
    *clones, out = sys.argv[1:]
    made = {name.__name__: name(clone)
            for name, clone in zip((clipood, dawin, twins), clones, strict=True)}  # fmt: skip
    Path(out).write_text(json.dumps(made, indent=1) + "\n")
