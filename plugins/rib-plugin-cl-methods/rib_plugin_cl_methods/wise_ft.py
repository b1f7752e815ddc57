"""WiSE-FT: between the weights before and after (Wortsman et al., 2022)."""

from dataclasses import dataclass
from typing import Literal

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.averaging import weighted_mean
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class WiseFT:
    """Average the weights before and after fine-tuning; trains nothing itself.

        θ = (1 − alpha) · θ₀ + alpha · θ_base

    Helps: nearly always some; the cheapest way to get robustness back after the fact.

    Cost: the base; then an average.

    Args:
        alpha: 0 is the pretrained model, 1 the fine-tuned one. Never choose it on a set that
            scores it. `--sweep wise-ft:alpha=0,0.25,0.5,0.75,1` is the whole curve.
        base: the fine-tuning method, as a reference; it is made once.
        batch_norm: `"average"` averages batch-norm statistics like weights, as the authors do;
            `"recompute"` takes them anew on the fine-tuning set, and so adapts to it whatever
            alpha is.

    Source: arXiv:2109.01903.
    """

    alpha: float = 0.5
    base: str = "ft"
    batch_norm: Literal["average", "recompute"] = "average"

    def __post_init__(self) -> None:
        expect(0 <= self.alpha <= 1, "wise-ft", "alpha in 0 … 1", self.alpha)

    def finetune(self, task: Task) -> Classifier:
        """Interpolate."""
        ends = [task.pretrained, task.checkpoint(self.base)]
        model = weighted_mean(ends, [1 - self.alpha, self.alpha])
        if self.batch_norm == "recompute" and 0 < self.alpha < 1:
            return task.recompute_batchnorm(model)
        return model
