"""Greedy soup: average only the checkpoints that help (Wortsman et al., 2022)."""

from dataclasses import dataclass
from typing import Literal

from rib_harness import Classifier, Task, members_of
from rib_plugin_cl_methods.averaging import weighted_mean


@dataclass(frozen=True)
class GreedySoup:
    """Add a checkpoint to the average if accuracy on held-out images does not drop.

        S ← S ∪ {m}  if  acc( mean of θ over S ∪ {m} ) ≥ acc( mean of θ over S )

    The members are tried in the order of their own accuracy on the held-out part of the
    fine-tuning set, which none of them was trained on. Equal accuracies are told apart by the
    loss, in that order only.

    Helps: where some members are bad, since a uniform soup has to swallow them.

    Cost: the members'; then an evaluation of the held-out part for each of them, twice.

    Args:
        members: references joined by `+`; `pretrained` is the untouched model.
        batch_norm: `"average"` averages batch-norm statistics like weights, as the authors do;
            `"recompute"` takes them anew on the fine-tuning set.

    Source: arXiv:2203.05482, recipe 1.
    """

    members: str = "pretrained+ft+ewc+lwf"
    batch_norm: Literal["average", "recompute"] = "average"

    def finetune(self, task: Task) -> Classifier:
        """Choose and average."""
        models = {name: task.checkpoint(name) for name in members_of(self.members)}
        alone = {name: task.held_out.score(model) for name, model in models.items()}
        order = sorted(models, key=lambda name: (-alone[name]["accuracy"], alone[name]["loss"]))
        chosen = order[:1]
        best, accuracy = models[order[0]], alone[order[0]]["accuracy"]
        for name in order[1:]:
            soup = self.soup(task, [models[one] for one in [*chosen, name]])
            reached = task.held_out.score(soup)["accuracy"]
            if reached >= accuracy:
                chosen, best, accuracy = [*chosen, name], soup, reached
        task.report(chosen=chosen, tried=alone, held_out_accuracy=accuracy)
        return best

    def soup(self, task: Task, models: list[Classifier]) -> Classifier:
        """The mean of the models."""
        mean = weighted_mean(models, [1 / len(models)] * len(models))
        return task.recompute_batchnorm(mean) if self.batch_norm == "recompute" else mean
