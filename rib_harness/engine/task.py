"""What a method is given: the pretrained classifier, the data, the recipe, and the loop."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from rib_harness.config import Recipe
from rib_harness.engine.classifier import Classifier
from rib_harness.engine.data import (
    Augment,
    Batch,
    Normalizer,
    Pixels,
    epoch_order,
    in_order,
    to_device,
)
from rib_harness.engine.device import seeded
from rib_harness.engine.fit import FitJob, Loss, Stateful, fit
from rib_harness.engine.labels import ClassMap
from rib_harness.engine.probe import Probe
from rib_harness.engine.text import TextTower
from rib_harness.engine.track import Log
from rib_harness.errors import ConfigError
from rib_harness.images import ImageSet
from rib_harness.options import one_reference
from rib_harness.progress import Progress, Silence
from rib_harness.protocols import Method

#: Answers and features are kept in memory up to this size, else computed at each use.
KEEP_LIMIT = 2**30


@dataclass
class Task:
    """One fine-tuning step, as a method sees it.

    Args:
        pretrained: the untouched classifier. Copy it; never modify it.
        pixels: the fine-tuning set.
        recipe: how to train.
        seed: of the run.
        accelerator: device and precision.
        checkpoints: the classifiers of the methods that this one `needs`, by reference.
        methods: those that it `calls`, by reference.
        datasets: those that it `reads`, by name.
        teachers: other backbones that it learns from, by reference, each with the whole set that
            the fine-tuning set is, or is a part of, as it sees it.
        held: the part of the fine-tuning set that is not trained on.
        text: makes the backbone's text tower.
        facts: what the method reports, see `report`.
        probe: measures the models that it trains; the method has no use of it.
        log: of the trackers.
        stages: counts the fits.
        work: folder for the state of its fits; None keeps none.
    """

    pretrained: Classifier
    pixels: Pixels
    recipe: Recipe
    seed: int
    accelerator: Accelerator
    checkpoints: Mapping[str, Classifier] = field(default_factory=dict)
    methods: Mapping[str, Method] = field(default_factory=dict)
    datasets: Mapping[str, Pixels] = field(default_factory=dict)
    teachers: Mapping[str, tuple[Classifier, Pixels]] = field(default_factory=dict)
    held: Pixels | None = None
    text: Callable[[], TextTower] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    probe: Probe | None = None
    log: Log | None = None
    stages: Iterator[int] = field(default_factory=itertools.count)
    work: Path | None = None
    save_every: float = 30.0
    progress: Progress = field(default_factory=Silence)
    label: str = "fine-tune"

    def __post_init__(self) -> None:
        if self.accelerator.num_processes > 1:
            raise ConfigError(
                ["Data-parallel training within a step is not supported yet: start one process."]
            )
        self.pretrained.to(self.device)
        self._classes = ClassMap(self.images.class_map).to(self.device)
        self._labels = torch.tensor(self.images.labels)
        self._others: dict[str, Task] = {}
        self._normalize = Normalizer(self.pixels.preprocess).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the models and the batches are."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def images(self) -> ImageSet:
        """The fine-tuning set: labels, classes, class map."""
        return self.pixels.images

    @property
    def repeats_images(self) -> bool:
        """Whether every epoch shows the same pixels, so that what depends on them can be kept."""
        return self.recipe.augment == "none"

    @property
    def steps_per_epoch(self) -> int:
        """Updates of an epoch with the recipe as it is."""
        return _Images(self).steps(self.recipe.batch_size)

    @property
    def steps(self) -> int:
        """Updates of a fit with the recipe as it is."""
        recipe = self.recipe
        steps = recipe.epochs * self.steps_per_epoch
        return steps if recipe.max_steps is None else min(steps, recipe.max_steps)

    def project(self, logits: Tensor) -> Tensor:
        """(N, label space) → (N, K) over the fine-tuning set's classes, for a loss."""
        projected: Tensor = self._classes(logits, "logsumexp")
        return projected

    def cross_entropy(self, model: Classifier, batch: Batch) -> Tensor:
        """Cross-entropy over the fine-tuning set's classes, the mean over the batch."""
        return F.cross_entropy(self.project(model(batch.images)), batch.labels)

    def checkpoint(self, reference: str) -> Classifier:
        """A copy of the classifier that another method made in this place.

        Args:
            reference: as in the method's `needs`; `"pretrained"` is the untouched one.
        """
        reference = one_reference(reference)
        if reference == "pretrained":
            return self.pretrained.copy()
        if reference not in self.checkpoints:
            has = ", ".join(["pretrained", *self.checkpoints])
            raise ConfigError(
                [f"{self.label}: no checkpoint of {reference!r}; declare it in `needs`. Has: {has}"]
            )
        return self.checkpoints[reference].copy()

    @property
    def held_out(self) -> Task:
        """The part of the fine-tuning set that no fit sees, as a task of its own: for choices.

        Raises:
            ConfigError: there is none; the method's spec says `holds_out`.
        """
        if self.held is None:
            raise ConfigError(
                [f"{self.label}: nothing is held out; say `holds_out` in the method's spec."]
            )
        return replace(self, pixels=self.held, held=None)

    def on(self, dataset: str) -> Task:
        """The same task on another dataset, which the method `reads`."""
        dataset = one_reference(dataset)
        if dataset not in self.datasets:
            raise ConfigError([f"{self.label}: declare the dataset {dataset!r} in `reads`."])
        if dataset not in self._others:
            # Its fits have numbers of their own, so that the method's others are those of a
            # method without them.
            stages = itertools.count(1000 * (1 + len(self._others)))
            pixels = self.datasets[dataset]
            self._others[dataset] = replace(
                self, pixels=pixels, held=None, stages=stages, teachers={}
            )
        return self._others[dataset]

    def run(self, reference: str, start: Classifier, **recipe: Any) -> Classifier:
        """Run another method from a start of one's own, which it takes for the pretrained one.

        Args:
            reference: as in the method's `calls`.
            start: left as it is.
            recipe: values that replace the recipe's.
        """
        reference = one_reference(reference)
        if reference not in self.methods:
            raise ConfigError([f"{self.label}: declare the method {reference!r} in `calls`."])
        changed = self.recipe.model_copy(update=recipe)
        start = start.frozen()
        return self.methods[reference].finetune(replace(self, pretrained=start, recipe=changed))

    def report(self, **facts: Any) -> None:
        """Keep facts with the result, as JSON values: what was chosen, and from what.

        `same_as=REFERENCE` says that the result is that checkpoint, of those it `needs`.
        """
        self.facts.update(json.loads(json.dumps(facts)))

    def text_tower(self) -> TextTower:
        """The backbone's text tower, pretrained and trainable: a copy of one's own.

        Raises:
            ConfigError: it has none; the method's spec says `requires=("text-tower",)`.
        """
        if self.text is None:
            raise ConfigError([f"{self.label}: the backbone has no text tower."])
        return copy.deepcopy(self.text()).requires_grad_(True).to(self.device)

    def score(self, model: Classifier) -> dict[str, float]:
        """Accuracy in % (as datasets are scored), mean cross-entropy and n, over the images."""
        model.to(self.device).eval()
        right, loss = 0, 0.0
        with torch.no_grad():
            for batch in self.batches():
                logits = model(batch.images)
                right += int((self._classes(logits, "max").argmax(1) == batch.labels).sum())
                loss += F.cross_entropy(self.project(logits), batch.labels, reduction="sum").item()
        n = len(self.pixels)
        return {"accuracy": 100 * right / n, "loss": loss / n, "n": n}

    @contextmanager
    def seeded(self, name: str) -> Iterator[None]:
        """Global generators seeded by the run's seed and a name: for libraries that draw."""
        with seeded(f"{self.seed}/{name}"):
            yield

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator of its own, seeded by the run's seed and a name."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def fit(
        self,
        model: Classifier,
        loss: Loss | None = None,
        *,
        ema: float | None = None,
        state: Mapping[str, Stateful] | None = None,
        after_step: Callable[[], None] | None = None,
        lr_scales: Mapping[str, float] | None = None,
        **recipe: Any,
    ) -> Classifier:
        """Train what requires gradients in `model`; call it several times for several stages.

        Each call draws for itself (the order of the images, dropout), the first as plain
        fine-tuning does: so several fits of copies are as several seeds.

        Args:
            model: trained in place and returned, in eval mode.
            loss: (model, batch) → scalar; None is `cross_entropy`.
            ema: decay of an average of the weights, which is then returned instead.
            state: what else changes during the fit, saved and restored with it.
            after_step: called after each update, for a projection or an average; the gradients
                that made it are still there. What it keeps belongs in `state`.
            lr_scales: factors on the learning rate by the name of the model's parameter, 1 where
                none is given; `after_step` may change them.
            recipe: values that replace the recipe's, e.g. `lr=task.recipe.lr / 2`.
        """
        if model is self.pretrained:
            raise ConfigError(
                [f"{self.label}: task.fit was given task.pretrained, which stays untouched: fit a "
                 "copy, task.pretrained.copy()."]
            )  # fmt: skip
        return self._fit(
            model,
            loss or self.cross_entropy,
            _Images(self),
            recipe,
            ema,
            state,
            after_step,
            lr_scales,
        )

    def fit_head(self, model: Classifier, loss: Loss | None = None, **recipe: Any) -> Classifier:
        """Train the head only, on features computed once.

        The loss is given a classifier whose encoder passes features through, and batches whose
        `images` are features (N, D). Exact, since nothing about the images is random.

        Raises:
            ConfigError: the recipe augments, so the features differ from epoch to epoch.
        """
        if not self.repeats_images:
            raise ConfigError([f"recipe.augment={self.recipe.augment}: features differ by epoch."])
        features = self._all_rows(model.frozen().features)
        light = Classifier(nn.Identity(), model.head, model.preprocess)
        light.head.requires_grad_(True)
        data = _Features(self, features)
        fitted = self._fit(
            light,
            loss or self.cross_entropy,
            data,
            recipe,
            whole=lambda light: Classifier(
                model.encoder.to(self.device), light.head, model.preprocess
            ),
        )
        model.head = fitted.head
        return model.to(self.device).eval()

    def answers_of(self, model: Classifier) -> Callable[[Batch], Tensor]:
        """A frozen copy's logits for a batch, (N, label space).

        Computed once for the whole set and kept, where the images repeat and the answers fit in
        memory (1 GiB); else computed for each batch.
        """
        return self._remembered(model.frozen().to(self.device))

    def answers_of_teacher(self, reference: str) -> Callable[[Batch], Tensor]:
        """Another backbone's logits for a batch's images, (N, label space).

        It sees them through its own preprocessing, in the views that the batch shows. It teaches
        on the fine-tuning set and on what is held out of it, and on no other set.

        Args:
            reference: as in the method's `teachers`.
        """
        reference = one_reference(reference)
        if reference not in self.teachers:
            raise ConfigError([f"{self.label}: declare the backbone {reference!r} in `teachers`."])
        classifier, whole = self.teachers[reference]
        classifier = classifier.frozen().to(self.device)
        pixels = whole if self.pixels.rows is None else whole.taken(self.pixels.rows)
        seen = replace(self, pretrained=classifier, pixels=pixels, held=None)
        if (kept := seen._kept(classifier)) is not None:
            return lambda batch: kept[batch.index]

        def answer(batch: Batch) -> Tensor:
            index = batch.index.cpu().numpy()
            (same,) = pixels.batches([index], batch.view)
            with torch.no_grad():
                logits: Tensor = classifier(seen._batch(same, index).images)
            return logits

        return answer

    def features_of(self, model: Classifier) -> Callable[[Batch], Tensor]:
        """A frozen copy's features for a batch, (N, D); kept as `answers_of` keeps."""
        return self._remembered(model.frozen().to(self.device).features)

    def batches(
        self, batch_size: int | None = None, order: Tensor | None = None
    ) -> Iterator[Batch]:
        """The fine-tuning set once, without augmentation, in order or in the given order."""
        size = batch_size or self.recipe.micro_batch or self.recipe.batch_size
        chunks = in_order(len(self.pixels) if order is None else len(order), size)
        if order is not None:
            chunks = [order.numpy()[chunk] for chunk in chunks]
        for indices, pixels in zip(chunks, self.pixels.batches(chunks), strict=True):
            yield self._batch(pixels, indices)

    def recompute_batchnorm(self, model: Classifier) -> Classifier:
        """Take the running statistics of batch-norm anew on the fine-tuning set.

        Averaged weights do not fit averaged statistics (arXiv:1803.05407). They are the mean over
        batches of the recipe's size in a random order, as in `torch.optim.swa_utils.update_bn`: in
        the order of a set, a batch is of one class. Without batch-norm nothing happens.
        """
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            return model
        model.to(self.device).eval()  # dropout does not act: nothing here is random
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.train().momentum = None  # the mean over all batches
        with torch.no_grad():
            order = torch.randperm(len(self.pixels), generator=self.generator("batch-norm"))
            for batch in self.batches(order=order):
                model(batch.images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        return model.eval()

    def _remembered(self, function: Callable[[Tensor], Tensor]) -> Callable[[Batch], Tensor]:
        if (kept := self._kept(function)) is not None:
            return lambda batch: kept[batch.index]

        def answer(batch: Batch) -> Tensor:
            with torch.no_grad():
                return function(batch.images)

        return answer

    def _kept(self, function: Callable[[Tensor], Tensor]) -> Tensor | None:
        """A row an image, where the images repeat and the rows fit in memory."""
        with torch.no_grad():
            first = function(next(self.batches(1)).images)
        fits = first.shape[1] * 4 * len(self.pixels) <= KEEP_LIMIT
        return self._all_rows(function) if self.repeats_images and fits else None

    def _all_rows(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return torch.cat([function(batch.images) for batch in self.batches()])

    def _fit(
        self,
        model: Classifier,
        loss: Loss,
        data: Any,
        recipe: Mapping[str, Any],
        ema: float | None = None,
        state: Mapping[str, Stateful] | None = None,
        after_step: Callable[[], None] | None = None,
        lr_scales: Mapping[str, float] | None = None,
        whole: Callable[[Classifier], Classifier] = lambda model: model,
    ) -> Classifier:
        job = FitJob(
            accelerator=self.accelerator,
            seed=self.seed,
            stage=next(self.stages),
            work=self.work,
            save_every=self.save_every,
            label=self.label,
            progress=self.progress,
            correct=lambda logits, labels: int((self.project(logits).argmax(1) == labels).sum()),
            probe=self.probe,
            whole=whole,
            log=self.log,
        )
        changed = self.recipe.model_copy(update=dict(recipe))
        return fit(
            model, loss, data, changed, job,
            ema=ema, state=state, after_step=after_step, lr_scales=lr_scales,
        )  # fmt: skip

    def _batch(self, pixels: Any, indices: Any) -> Batch:
        index = torch.from_numpy(indices)
        images = self._normalize(to_device(pixels, self.device))
        return Batch(images, self._labels[index].to(self.device), index.to(self.device))


class _Images:
    """Epochs of images."""

    def __init__(self, task: Task):
        self.task = task

    def __len__(self) -> int:
        return len(self.task.pixels)

    def steps(self, batch_size: int) -> int:
        return len(epoch_order(len(self), batch_size, [0]))

    def epoch(self, epoch: int, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
        order = epoch_order(len(self), batch_size, [seed, epoch])[start:]
        kind = self.task.recipe.augment
        augment = None if kind == "none" else Augment(kind, seed, epoch)
        for indices, pixels in zip(order, self.task.pixels.batches(order, augment), strict=True):
            yield replace(self.task._batch(pixels, indices), view=augment)


class _Features(_Images):
    """Epochs of features."""

    def __init__(self, task: Task, features: Tensor):
        super().__init__(task)
        self.features = features

    def epoch(self, epoch: int, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
        for indices in epoch_order(len(self), batch_size, [seed, epoch])[start:]:
            index = torch.from_numpy(indices).to(self.task.device)
            labels = self.task._labels[indices].to(self.task.device)
            yield Batch(self.features[index], labels, index)
