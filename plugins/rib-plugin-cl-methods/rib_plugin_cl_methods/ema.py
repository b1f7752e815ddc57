"""Exponential moving average of the weights along fine-tuning (Polyak averaging)."""

from dataclasses import dataclass

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class MovingAverage:
    """Fine-tune, and keep a running average of the weights instead of the last ones.

        θ̄ ← d · θ̄ + (1 − d) · θ  after each update,        d = 1 − 1 / (horizon · updates)

    The usual d = 0.9999 looks back over 10 000 updates, more than a small set has; so the horizon
    is a share of the fit. θ̄ begins as the weights after the first update. Batch-norm statistics are
    averaged too. Under a schedule that ends at 0 the last updates hardly move anything, and a
    horizon of a tenth of them gives plain fine-tuning again.

    Helps: evens out the last noisy steps; the average is nearer to the start than the end is.

    Cost: one more copy of the weights, no time to speak of.

    Args:
        horizon: how far back the average looks, as a share of all updates; 0 is plain
            fine-tuning.

    Source: Polyak & Juditsky, SIAM J. Control Optim. 30(4), 1992.
    """

    horizon: float = 1.0

    def __post_init__(self) -> None:
        expect(0 <= self.horizon <= 1, "ema", "horizon in 0 … 1", self.horizon)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters; return the average."""
        updates = self.horizon * task.steps
        return task.fit(task.pretrained.copy(), ema=1 - 1 / updates if updates > 1 else 0.0)
