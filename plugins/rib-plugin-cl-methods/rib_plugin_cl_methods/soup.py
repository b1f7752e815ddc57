"""Model soup: the mean of several checkpoints (Wortsman et al., 2022)."""

from dataclasses import dataclass
from typing import Literal

from rib_harness import Classifier, ConfigError, Task, members_of
from rib_plugin_cl_methods.averaging import weighted_mean


@dataclass(frozen=True)
class UniformSoup:
    """Average the weights of several methods' checkpoints; trains nothing itself.

        θ = mean of θ_m over the members m

    Args:
        members: references joined by `+`; `pretrained` is the untouched model. The default is
            the soup of arXiv:2410.21582. Each member is made once.
        batch_norm: `"recompute"` takes batch-norm statistics anew on the fine-tuning set;
            `"average"` keeps the mean.

    Source: arXiv:2203.05482.
    """

    members: str = "pretrained+ft+ewc+lwf"
    batch_norm: Literal["recompute", "average"] = "recompute"

    def __post_init__(self) -> None:
        if not self.members or not all(members_of(self.members)):
            raise ConfigError([f"soup: expected members such as ft+lwf, got {self.members!r}."])

    def finetune(self, task: Task) -> Classifier:
        """Average."""
        models = [task.checkpoint(member) for member in members_of(self.members)]
        model = weighted_mean(models, [1 / len(models)] * len(models))
        if self.batch_norm == "recompute" and len(models) > 1:
            return task.recompute_batchnorm(model)
        return model
