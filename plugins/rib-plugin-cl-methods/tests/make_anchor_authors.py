"""Records what authors' own code computes that stays near θ₀: `anchor_authors.json`.

LDIFS: omegafragger/ldifs_code at c7e82a4; SPD: GT-RIPL/Selective-Projection-Decay at b377695;
mixout: bloodwass/mixout at 18f377d; all as they are on GitHub, under torch 2.15.0. Nothing of
theirs is in this package. Run it again with

    python make_anchor_authors.py CLONE_OF_LDIFS CLONE_OF_SPD CLONE_OF_MIXOUT anchor_authors.json

Inputs are recorded too, so that nothing has to be drawn again. This file is no test.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def drawn(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Given(nn.Module):
    """A model whose features are given."""

    def __init__(self, features: list[Tensor]):
        super().__init__()
        self.features, self.N_slices = features, len(features)

    def get_features(self, images: None) -> list[Tensor]:
        return self.features


def ldifs(clone: Path) -> list[dict[str, Any]]:
    """Its distance, on maps (N, C, positions), since it normalises what comes second, and rows."""
    module = loaded(clone / "loss/ldifs.py")
    found = []
    for shapes in ([(3, 6, 5), (3, 6, 2)], [(4, 7)]):
        before = [drawn(*shape, scale=3) for shape in shapes]
        now = [one + drawn(*one.shape) for one in before]
        value = module.LDIFSFinetune(Given(before), Given(now))(None).item()
        lists = [[one.tolist() for one in features] for features in (now, before)]
        found.append({"now": lists[0], "before": lists[1], "value": value})
    return found


def spd(clone: Path) -> dict[str, Any]:
    """AdamSPD on gradients that turn around, for three strengths."""
    # It imports this name, which torch has no more.
    vars(sys.modules["torch.optim.optimizer"])["required"] = None
    module = loaded(clone / "adamSPD.py")
    start = [drawn(4, 3), drawn(5)]
    pull = [drawn(*one.shape) for one in start]
    gradients = [
        [(1 if step % 6 < 3 else -1) * one + drawn(*one.shape, scale=0.3) for one in pull]
        for step in range(12)
    ]
    paths = {}
    for strength in (0.5, 1.0, 2.0):
        parameters = [nn.Parameter(one.clone()) for one in start]
        groups = [{"params": parameters, "pre": [one.clone() for one in start]}]
        optimizer = module.AdamSPD(groups, lr=0.05, weight_decay=strength)
        paths[strength] = []
        for step in gradients:
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
            paths[strength].append([one.tolist() for one in parameters])
    return {
        "lr": 0.05, "start": [one.tolist() for one in start],
        "gradients": [[one.tolist() for one in step] for step in gradients], "paths": paths,
    }  # fmt: skip


def mixout(clone: Path) -> dict[str, Any]:
    """One mixing of a weight and its gradient; the mask is that of ones mixed with zeros."""
    sys.path.insert(0, str(clone))
    from mixout.functional import mixout as mix

    theta, start, upstream = drawn(4, 9).requires_grad_(), drawn(4, 9), drawn(4, 9)
    torch.manual_seed(0)
    ones = mix(torch.ones(4, 9).double(), torch.zeros(4, 9).double(), 0.6, True)
    torch.manual_seed(0)
    mixed = mix(theta, start, 0.6, True)
    mixed.backward(upstream)
    return {
        "p": 0.6, "theta": theta.tolist(), "start": start.tolist(),
        "mask": (ones[:1] > 0).double().tolist(), "mixed": mixed.tolist(),
        "upstream": upstream.tolist(), "gradient": theta.grad.tolist(),
    }  # fmt: skip


if __name__ == "__main__":
    GENERATOR = torch.Generator().manual_seed(0)
    ldifs_clone, spd_clone, mixout_clone, out = map(Path, sys.argv[1:])
    recorded = {
        "ldifs": ldifs(ldifs_clone),
        "spd": spd(spd_clone),
        "mixout": mixout(mixout_clone),
    }
    out.write_text(json.dumps(recorded, indent=1) + "\n")
