"""Model Stock: how far to go towards the mean of two fine-tunings (Jang et al., 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from torch import Tensor

from rib_harness import Classifier, Task, members_of
from rib_plugin_cl_methods.averaging import weighted_mean
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class ModelStock:
    """Go from θ₀ towards the mean of N fine-tunings, layer by layer as far as they agree.

        θ = t · mean(θ_n) + (1 − t) · θ₀,        t = N cos φ / (1 + (N − 1) cos φ)

    φ is the angle between two members' moves from θ₀ in that layer (the mean of the cosines of
    all pairs). t is kept in 0 … 1; a layer that did not move stays.

    Helps: two fine-tunings do here what a soup needs many for.

    Cost: N times ft; nothing more to speak of.

    Args:
        members: N ≥ 2 references joined by `+`; `ft@1` is `ft` with another seed.
        batch_norm: `"average"` moves batch-norm statistics as it moves weights; `"recompute"` takes
            them anew on the fine-tuning set.

    Source: arXiv:2403.19522.
    """

    members: str = "ft+ft@1"
    batch_norm: Literal["average", "recompute"] = "average"

    def __post_init__(self) -> None:
        names = members_of(self.members)
        fine = len(names) >= 2 and len(set(names)) == len(names) and "pretrained" not in names
        expect(fine, "model-stock", "two different fine-tunings at least", self.members)

    def finetune(self, task: Task) -> Classifier:
        """Average, and go part of the way."""
        models = [task.checkpoint(name) for name in members_of(self.members)]
        result = weighted_mean(models, [1 / len(models)] * len(models))
        start, ends = task.pretrained.state_dict(), [model.state_dict() for model in models]
        ratios = {}
        for name, mean in result.state_dict().items():
            if mean.is_floating_point():
                ratios[name] = ratio([end[name] - start[name] for end in ends])
                mean.copy_(start[name].lerp(mean, ratios[name]))
        task.report(ratios={name: round(t, 4) for name, t in ratios.items()})
        return task.recompute_batchnorm(result) if self.batch_norm == "recompute" else result


def ratio(moves: Sequence[Tensor]) -> float:
    """t of one layer.

    Args:
        moves: θ_n − θ₀, all of one shape.
    """
    flat = [move.double().flatten() for move in moves]
    if not all(move.norm() > 0 for move in flat):
        return 0.0
    pairs = [float(a @ b / (a.norm() * b.norm())) for a, b in combinations(flat, 2)]
    cosine, n = sum(pairs) / len(pairs), len(flat)
    if cosine <= 0:
        return 0.0
    return min(n * cosine / (1 + (n - 1) * cosine), 1.0)
