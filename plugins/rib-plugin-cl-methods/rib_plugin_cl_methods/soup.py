"""Model soup: the mean of several checkpoints (Wortsman et al., 2022)."""

from dataclasses import dataclass
from typing import Literal

from rib_harness import Classifier, Task, members_of
from rib_plugin_cl_methods.averaging import weighted_mean
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class UniformSoup:
    """Average the weights of several methods' checkpoints; trains nothing itself.

        θ = mean of θ_m over the members m

    Helps: errors of different methods cancel; the pretrained member pulls back to the start.

    Cost: the members'; then an average.

    Args:
        members: references joined by `+`; `pretrained` is the untouched model. The default is
            the soup of arXiv:2410.21582. Each member is made once.
        batch_norm: `"average"` averages batch-norm statistics like weights, as the authors do;
            `"recompute"` takes them anew on the fine-tuning set.

    Source: arXiv:2203.05482.
    """

    members: str = "pretrained+ft+ewc+lwf"
    batch_norm: Literal["average", "recompute"] = "average"

    def __post_init__(self) -> None:
        fine = bool(self.members) and all(members_of(self.members))
        expect(fine, "soup", "members such as ft+lwf", repr(self.members))

    def finetune(self, task: Task) -> Classifier:
        """Average."""
        models = [task.checkpoint(member) for member in members_of(self.members)]
        model = weighted_mean(models, [1 / len(models)] * len(models))
        if self.batch_norm == "recompute" and len(models) > 1:
            return task.recompute_batchnorm(model)
        return model
