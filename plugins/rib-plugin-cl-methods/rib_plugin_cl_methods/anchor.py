"""Distance from the pretrained weights, which L2-SP and EWC penalise."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from rib_harness import Classifier, Task

log = logging.getLogger("rib_harness")


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


def largest_of(weight: Mapping[str, Tensor] | None) -> float:
    """The greatest weight of `squared_distance`."""
    return 1.0 if weight is None else max(float(one.max()) for one in weight.values())


def check_steady(task: Task, curvature: float) -> None:
    """Say so, in the log and in the result, if the penalty alone makes each step a larger one.

    Gradient descent with momentum m on h θ²/2 is stable for lr · h < 2 (1 + m).

    Args:
        task: its recipe has the learning rate; for other optimizers than SGD nothing is known.
        curvature: h, the penalty's greatest second derivative.

    Source: Polyak, USSR Comput. Math. Math. Phys. 4(5), 1964.
    """
    recipe = task.recipe
    reached, most = recipe.lr * curvature, 2 * (1 + recipe.momentum)
    if recipe.optimizer.lower() == "sgd" and reached >= most:
        said = (
            f"the penalty is too strong for the learning rate: {recipe.lr:g} × {curvature:.4g} = "
            f"{reached:.3g}, and from 2 · (1 + momentum) = {most:.3g} on each step is larger than "
            "the last. Take a smaller strength, or recipe.lr."
        )
        log.warning("%s: %s", task.label, said)
        task.report(unsteady=said)
