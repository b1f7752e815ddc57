"""Linear probing, then fine-tuning (Kumar et al., 2022)."""

from dataclasses import dataclass

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class LinearProbingFineTuning:
    """Fine-tune everything, starting from the head that linear probing found.

        loss = CE(h(Φ(x)), y)        from h = the probed head, Φ = Φ₀

    The paper's motive is a head that starts at random and distorts good features. In this
    protocol the head is pretrained already, so expect less of it here.

    Helps: where the head does not fit the new data, since it learns first and alone.

    Cost: ft's, and linear probing's, which is little on features computed once.

    Args:
        lp: the linear probing to start from, as a reference; it is made once.
        second: the method of the second stage, as a reference; the probed classifier is what it
            takes for the pretrained one, so an anchor or a teacher is that.
        lr_scale: learning rate of the second stage as a multiple of the recipe's. Its authors tune
            it apart from ft's, on held-out images: `--search lp-ft:lr_scale=0.1,0.3,1`. A smaller
            one alone looks like a better method.

    Source: arXiv:2202.10054.
    """

    lp: str = "lp"
    second: str = "ft"
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        expect(self.lr_scale > 0, "lp-ft", "lr_scale > 0", self.lr_scale)

    def finetune(self, task: Task) -> Classifier:
        """Run the second stage from the probed head."""
        lr = task.recipe.lr * self.lr_scale
        return task.run(self.second, start=task.checkpoint(self.lp), lr=lr)
