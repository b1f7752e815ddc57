"""Records what another library computes as EWC's Fisher: `avalanche_fisher.json`.

The numbers are of `EWCPlugin.compute_importances` of avalanche-lib 0.6.0 (MIT), batch size 1, with
the given labels, under torch 2.15.0 and numpy 2.4.6. The package as a whole was not imported: it
asks for wandb and much else. Its `training/plugins/ewc.py` and `training/utils.py` run as they
are; what these import from the rest of it is stood in for below, and of that only
`avalanche_forward`, which is `model(x)` for a net without tasks, is ever called. Run it again with

    pip install --target PKGS --no-deps avalanche-lib==0.6.0
    PYTHONPATH=PKGS python make_avalanche_fisher.py avalanche_fisher.json

The weights and inputs come from a NumPy seed and are recorded too, so that nothing has to be drawn
again. This package does not use avalanche, and this file is no test.
"""

import importlib
import json
import sys
from importlib.metadata import distribution, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

SHAPES = {"0.weight": (3, 3, 3, 3), "0.bias": (3,), "3.weight": (4, 3), "3.bias": (4,)}

#: What the two files import from the rest of avalanche.
STAND_INS: dict[str, dict[str, Any]] = {
    "avalanche.benchmarks": {"OnlineCLExperience": type("OnlineCLExperience", (), {})},
    "avalanche.models.batch_renorm": {"BatchRenorm2D": type("BatchRenorm2D", (nn.Module,), {})},
    "avalanche.models.utils": {"avalanche_forward": lambda model, x, task_labels: model(x)},
    "avalanche.training.plugins.strategy_plugin": {
        "SupervisedPlugin": type("SupervisedPlugin", (), {})
    },
}


def ewc_plugin() -> Any:
    """avalanche's class, from its own file."""
    root = Path(str(distribution("avalanche-lib").locate_file("")))
    packages = ("avalanche", "avalanche.models", "avalanche.training", "avalanche.training.plugins")
    for name in packages:  # without running what is in their __init__.py
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")))]
    for name, content in STAND_INS.items():
        module = sys.modules[name] = ModuleType(name)
        vars(module).update(content)
    return importlib.import_module("avalanche.training.plugins.ewc").EWCPlugin


def main(target: Path) -> None:
    """Compute and write."""
    rng = np.random.default_rng(20170314)
    weights = {name: (rng.standard_normal(shape) / 2).round(3) for name, shape in SHAPES.items()}
    images = rng.integers(0, 256, (6, 8, 8, 3))
    labels = rng.integers(0, 4, 6)
    net = nn.Sequential(
        nn.Conv2d(3, 3, 3), nn.Tanh(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(3, 4),
    )  # fmt: skip
    net.load_state_dict({name: torch.tensor(value).float() for name, value in weights.items()})
    x = torch.tensor((images / 255 - 0.5) / 0.25, dtype=torch.float32).permute(0, 3, 1, 2)
    data = TensorDataset(x, torch.from_numpy(labels), torch.zeros(len(x), dtype=torch.long))
    fisher = ewc_plugin()(ewc_lambda=1.0).compute_importances(
        net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), data, "cpu", 1
    )
    record = {
        "made_by": "EWCPlugin.compute_importances, batch size 1; see make_avalanche_fisher.py",
        "versions": {name: version(name) for name in ("avalanche-lib", "torch", "numpy")},
        "weights": {name: value.tolist() for name, value in weights.items()},
        "images": images.tolist(),
        "labels": labels.tolist(),
        "fisher": {name: imp.data.double().tolist() for name, imp in fisher.items()},
    }
    target.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
