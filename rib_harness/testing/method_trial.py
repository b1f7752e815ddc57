"""One method under test: on a tiny backbone and tiny images, with all that its spec declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from rib_harness.catalog import Bound, Catalog
from rib_harness.composition import calls_of, missing_parts, needs_of, reads_of, teachers_of
from rib_harness.engine.classifier import Classifier
from rib_harness.engine.data import Pixels
from rib_harness.engine.device import seeded
from rib_harness.engine.fit import _Fit
from rib_harness.engine.parts import parts_of
from rib_harness.engine.task import Task
from rib_harness.engine.text import TextTower
from rib_harness.errors import InterruptedRun
from rib_harness.testing.network import no_network
from rib_harness.testing.outcome import CheckError, CheckSkipped, expect
from rib_harness.testing.tiny import tiny_classifier, tiny_clip, tiny_images, tiny_task, tiny_vit

#: Makes a classifier over ten classes for images as `TINY` prepares them, or it and its text tower.
Net = Callable[[], Classifier | tuple[Classifier, TextTower]]

#: A tiny net for every part that methods may require.
NETS: dict[str, Net] = {"conv": tiny_classifier, "vit": tiny_vit, "clip": tiny_clip}


def towers(net: Net) -> tuple[Classifier, TextTower | None]:
    """The classifier that it makes, and the text tower if there is one."""
    made = net()
    return made if isinstance(made, tuple) else (made, None)


def lacking(catalog: Catalog, method: Bound, net: Net) -> list[str]:
    """Parts that the method requires and the net has not."""
    classifier, text = towers(net)
    has = parts_of(classifier.encoder)
    if text is not None:
        has += ("text-tower", *(["projection"] if text.projection else []))
    return missing_parts(catalog, method, has, "default")


def fitting(catalog: Catalog, method: Bound, nets: Mapping[str, Net]) -> dict[str, Net]:
    """Those of the nets that have what the method requires."""
    return {name: net for name, net in nets.items() if not lacking(catalog, method, net)}


#: Four updates in two epochs of three: a stop may come in either.
RECIPE: dict[str, Any] = {"epochs": 2, "max_steps": 4}


@dataclass(eq=False)
class MethodTrial:
    """One method under test.

    Args:
        bound: it, with its options.
        catalog: where the methods that it needs or calls are.
        net: makes the backbone, or it and its text tower; None takes the first tiny one that has
            what the method requires.
        seed: of the run.
    """

    bound: Bound
    catalog: Catalog
    net: Net | None = None
    seed: int = 0

    def task(self, work: Path | None = None) -> Task:
        """A tiny task with all that its spec declares, and nothing else."""
        classifier, text = towers(self._net)
        held = any(one.bound.spec.holds_out for one in (self, *self._needs.values()))
        return tiny_task(
            pretrained=classifier,
            checkpoints={
                reference: one.result.copy().eval() for reference, one in self._needs.items()
            },
            methods={
                reference: one.build()
                for reference, one in calls_of(self.catalog, self.bound, "default").items()
            },
            datasets={name: tiny_images(16, seed=7) for name in reads_of(self.bound)},
            teachers={text: tiny_classifier(seed=5) for text in teachers_of(self.bound)},
            held=tiny_images(12, seed=9) if held else None,
            text=text,
            work=work,
            seed=self.seed,
            **RECIPE,
        )

    def of(self, bound: Bound, seed: int = 0) -> MethodTrial:
        """Another method on the same backbone."""
        return MethodTrial(bound, self.catalog, self._net, self.seed + seed)

    def run(self, task: Task | None = None) -> Classifier:
        """Fine-tune as a run does, with global generators seeded around it; without the network."""
        task = task or self.task()
        with seeded("a step's key"), no_network() as reached:
            try:
                result = self.bound.build().finetune(task)
            except Exception as error:
                if not reached:
                    raise
                raise CheckError(_reached(reached)) from error
        expect(not reached, _reached(reached))
        if not isinstance(result, Classifier):
            raise CheckError(
                f"finetune gave {type(result).__name__}: return the Classifier, as task.fit does."
            )
        return result

    @cached_property
    def result(self) -> Classifier:
        """What it makes of the task; to be read only."""
        return self._straight[0]

    @property
    def updates(self) -> list[str]:
        """For each update of the harness's loop the frozen parameter that it changed, or ""."""
        return self._straight[1].updates

    @property
    def reads(self) -> int:
        """How often it went through images, in whatever loop."""
        return self._straight[1].reads

    @property
    def facts(self) -> dict[str, Any]:
        """What it reported."""
        return self._straight[2]

    @cached_property
    def _straight(self) -> tuple[Classifier, Watched, dict[str, Any]]:
        task = self.task()
        with watched() as seen:
            return self.run(task), seen, task.facts

    @cached_property
    def _needs(self) -> dict[str, MethodTrial]:
        """What it starts from, each made once."""
        needs = needs_of(self.catalog, self.bound, "default")
        return {need.reference: self.of(need.method, need.seed) for need in needs}

    @cached_property
    def _net(self) -> Net:
        if self.net is not None:
            return self.net
        for net in fitting(self.catalog, self.bound, NETS).values():
            return net
        missing = lacking(self.catalog, self.bound, NETS["clip"])
        raise CheckSkipped(f"no tiny backbone has all that it requires, as {', '.join(missing)}")


def _reached(reached: list[str]) -> str:
    return (
        f"finetune reaches for {', '.join(reached)} on the network: a step must run offline. What "
        "it needs is a checkpoint (`needs`), a dataset (`reads`), or a file that an option names."
    )


@dataclass
class Watched:
    """What a run did.

    Args:
        updates: for each update of the harness's loop the frozen parameter that it changed, else
            an empty text.
        reads: how often images were gone through.
    """

    updates: list[str] = field(default_factory=list)
    reads: int = 0


@contextmanager
def watched(stop_after: int | None = None) -> Iterator[Watched]:
    """See every update of the harness's loop; interrupt it after so many."""
    seen = Watched()
    original, batches = _Fit.update, Pixels.batches

    def read(self: Pixels, *given: Any, **named: Any) -> Any:
        seen.reads += 1
        return batches(self, *given, **named)

    def update(self: _Fit, batch: Any) -> Any:
        if len(seen.updates) == stop_after:
            raise InterruptedRun
        named = self.model.named_parameters()
        frozen = {name: p.clone() for name, p in named if not p.requires_grad}
        result = original(self, batch)
        now = dict(self.model.named_parameters())
        seen.updates.append(next((n for n in frozen if not torch.equal(now[n], frozen[n])), ""))
        return result

    with (
        mock.patch.object(_Fit, "update", update),
        mock.patch.object(Pixels, "batches", read),
    ):
        yield seen
