"""Weighted means of checkpoints, for WiSE-FT and soups."""

from collections.abc import Sequence

import torch

from rib_harness import Classifier


def weighted_mean(models: Sequence[Classifier], weights: Sequence[float]) -> Classifier:
    """Σ w θ over all parameters and floating-point buffers; the rest is the heaviest one's.

    A weight of exactly 1 on one of them gives that one to the bit.
    """
    result = models[max(range(len(weights)), key=weights.__getitem__)].copy()
    states = [model.state_dict() for model in models]
    with torch.no_grad():
        for name, target in result.state_dict().items():
            if target.is_floating_point():
                total = torch.zeros_like(target, dtype=torch.float64)
                for state, weight in zip(states, weights, strict=True):
                    if weight:
                        total += weight * state[name].double()
                target.copy_(total)
    return result.eval()
