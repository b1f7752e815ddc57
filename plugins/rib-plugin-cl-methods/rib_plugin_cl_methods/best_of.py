"""Choose among checkpoints on held-out images: what `--search` does."""

from dataclasses import dataclass

from rib_harness import Classifier, Task, members_of


@dataclass(frozen=True)
class BestOf:
    """Take the member with the highest accuracy on the held-out part of the fine-tuning set.

        θ = θ_m,        m = argmax of acc(θ_m) on the held-out images

    No member was trained on that part, and no dataset that scores the run is seen: a method is
    given its fine-tuning set and nothing else. Equal accuracies are told apart by the loss; a
    member that diverged is not chosen.
    `--search lambda=0.01,0.1,1` makes the members.

    Helps: to compare methods each at its own best setting, chosen as a user could choose it.

    Cost: all members, and an evaluation of the held-out part for each.

    Args:
        members: references joined by `+`.

    Source: the usual practice; on why not on a shifted set, arXiv:2007.01434.
    """

    members: str

    def finetune(self, task: Task) -> Classifier:
        """Choose."""
        members = members_of(self.members)
        there = [name for name in members if name in (*task.checkpoints, "pretrained")]
        names = there or members
        tried = {name: task.held_out.score(task.checkpoint(name)) for name in names}
        best = min(names, key=lambda name: (-tried[name]["accuracy"], tried[name]["loss"]))
        diverged = [name for name in members if name not in names]
        task.report(same_as=best, chosen=best, tried=tried)
        if diverged:
            task.report(diverged=diverged)
        return task.checkpoint(best)
