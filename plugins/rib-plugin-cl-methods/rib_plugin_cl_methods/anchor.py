"""Distance from the pretrained weights, which L2-SP and EWC penalise."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rib_harness import Classifier


def snapshot(model: Classifier) -> dict[str, Tensor]:
    """θ₀: a copy of every parameter, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def squared_distance(
    model: Classifier, start: Mapping[str, Tensor], weight: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Σ w (θ − θ₀)² over all parameters; w = 1 if no weight is given. A scalar."""
    terms = []
    for name, parameter in model.named_parameters():
        squared = (parameter - start[name]).square()
        terms.append((squared if weight is None else weight[name] * squared).sum())
    return torch.stack(terms).sum()
