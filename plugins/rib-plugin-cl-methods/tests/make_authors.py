"""Records what the authors' own code computes on random tensors: `authors.json`.

NMTune: Hhhhhhao/Noisy-Model-Learning at f249dce; CaRot: MLAI-Yonsei/CaRot at c3e8bdc; MoA:
KU-CVLAB/MoA at 7782061; all as they are on GitHub, under torch 2.15.0. Where a loss is written
inside a training loop, its statements are taken out of the file by their syntax and executed.
Nothing of theirs is in this package. Run it again with

    pip install --target PKGS --no-deps einops
    PYTHONPATH=PKGS python make_authors.py CLONE_OF_NMTUNE CLONE_OF_CAROT CLONE_OF_MOA authors.json

Inputs and weights are recorded too, so that nothing has to be drawn again. This file is no test.
"""

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def drawn(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def branches(tree: ast.AST, test: str) -> list[ast.If]:
    """The `if TEST:` statements of a file."""
    return [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == test]


def run(nodes: list[Any], names: dict[str, Any]) -> dict[str, Any]:
    """Execute statements of a file over the given names."""
    module = ast.fix_missing_locations(ast.Module(nodes, []))
    exec(compile(module, "authors", "exec"), names)
    return names


def nmtune(clone: Path) -> dict[str, Any]:
    """The three terms, each with weight 1, on 7 features of width 6, and 4 of width 10."""
    tree = ast.parse((clone / "src/models/nml_tune.py").read_text())
    off_diagonal = [n for n in tree.body if getattr(n, "name", "") == "off_diagonal"]
    found = []
    for n, d in ((7, 6), (4, 10)):
        before, after = drawn(n, d), drawn(n, d)
        terms = {}
        for term in ("mse", "cov", "svd"):
            names: dict[str, Any] = {
                "torch": torch, "F": F, "mse_loss_fn": nn.MSELoss(), "feats_w": before,
                "mlp_feats": after.clone(), "mlp_feats_s": after, f"{term}_loss_weight": 1.0,
                "loss": torch.zeros((), dtype=torch.float64),
            }  # fmt: skip
            branch = branches(tree, f"{term}_loss_weight")[0]
            terms[term] = run([*off_diagonal, *branch.body], names)["loss"].item()
        found.append({"before": listed(before), "after": listed(after), **terms})
    return {"cases": found}


def carot(clone: Path) -> dict[str, Any]:
    """The two terms on the projections, distillation, and the teacher's momentum."""
    tree = ast.parse((clone / "src/models/carot_loss.py").read_text())
    image, text = drawn(8, 6, scale=0.3), drawn(5, 6, scale=0.3)
    towers = SimpleNamespace(visual=SimpleNamespace(proj=image), text_projection=text)
    terms = {}
    for weight in ("cross_fnorm", "l_orth_wv"):
        args = SimpleNamespace(model="ViT-B/16", **{weight: 1.0})
        names = {"torch": torch, "args": args, "ft_clip_loss": 0.0,
                 "model": SimpleNamespace(module=SimpleNamespace(model=towers))}  # fmt: skip
        terms[weight] = float(run(branches(tree, f"args.{weight}")[0].body, names)["ft_clip_loss"])
    now, before = drawn(5, 5, scale=3), drawn(5, 5, scale=3)
    loss = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "dist_loss"
    ]  # fmt: skip
    names = {"torch": torch, "F": F,
             "logits_per_image_t": before, "logits_per_text_t": before.T}  # fmt: skip
    # Cross-entropy there; that of the teacher with itself is the part without a gradient.
    entropy = run([loss[0]], {**names, "logits_per_image": before, "logits_per_text": before.T})
    crossed = run([loss[0]], {**names, "logits_per_image": now, "logits_per_text": now.T})
    momenta = {}
    args = SimpleNamespace(epochs=10, m_warm_up=0.2, m_sche_src=0.05, m_sche_tar=0.9)
    schedule = branches(tree, "step < num_batches * args.epochs * args.m_warm_up")[0]
    for step in (0, 10, 199, 200, 1000):
        names = {"args": args, "num_batches": 100, "step": step}
        momenta[step] = run([schedule], names)["m"]
    return {
        "image": listed(image), "text": listed(text), **terms,
        "now": listed(now), "before": listed(before), "updates": 1000,
        "distillation": (crossed["dist_loss"] - entropy["dist_loss"]).item(), "momenta": momenta,
    }  # fmt: skip


def moa(clone: Path) -> dict[str, Any]:
    """A layer with experts, with noise in training and without."""
    file = clone / "domainbed/models/lora/lora_util.py"
    spec = importlib.util.spec_from_file_location("lora_util", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    layer = module.MOELoraInjectedLinear(6, 5, bias=True).double()
    for up in layer.lora_up:
        nn.init.normal_(up.weight)
    x, noise = drawn(3, 4, 6), drawn(12, 4)
    # Farther apart than they are drawn, so that the experts differ.
    layer.router.sim_matrix.data = drawn(256, 4)
    outputs = {}
    with torch.no_grad():
        torch.randn_like = lambda of, **_: noise
        for mode in (True, False):
            layer.train(mode)
            outputs["train" if mode else "eval"] = listed(layer(x))
            outputs[f"aux_{'train' if mode else 'eval'}"] = layer.aux_loss.item()
    # Of the router's 256 keys there are too many numbers to keep: a rotation of them changes no
    # cosine, and their triangular form has six of weights and one of the bias.
    own = torch.cat(
        [
            layer.router.cosine_projector.weight.data,
            layer.router.cosine_projector.bias.data[:, None],
            layer.router.sim_matrix.data / layer.router.sim_matrix.data.norm(dim=0),
        ],
        1,
    )
    keys = torch.linalg.qr(own)[1]
    return {
        "x": listed(x), "noise": listed(noise.view(3, 4, 4)), **outputs,
        "weight": listed(layer.linear.weight.data), "bias": listed(layer.linear.bias.data),
        "down": [listed(one.weight.data) for one in layer.lora_down],
        "up": [listed(one.weight.data) for one in layer.lora_up],
        "route": listed(keys[:, :6]), "route_bias": listed(keys[:, 6]),
        "embeddings": listed(keys[:, 7:]), "sharpness": listed(layer.router.temperature.data),
    }  # fmt: skip


if __name__ == "__main__":
    GENERATOR = torch.Generator().manual_seed(0)
    nmtune_clone, carot_clone, moa_clone, out = map(Path, sys.argv[1:])
    recorded = {"nmtune": nmtune(nmtune_clone), "carot": carot(carot_clone), "moa": moa(moa_clone)}
    out.write_text(json.dumps(recorded, indent=1) + "\n")
