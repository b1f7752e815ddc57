"""The training loop that methods call, once or in several stages.

Everything random is seeded from (seed, stage, epoch), and the whole state is one safetensors
file, replaced atomically: a fit that was killed and is started again ends with the same weights,
bit for bit on a CPU, as one that was not. A state that does not verify is none: the fit starts
again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import xxhash
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rib_harness.cache import clear
from rib_harness.config import Recipe
from rib_harness.engine.classifier import Classifier
from rib_harness.engine.data import Batch
from rib_harness.engine.device import random_state, seeded, set_random_state
from rib_harness.engine.probe import Probe
from rib_harness.engine.track import Log
from rib_harness.errors import ConfigError, DivergedError, InterruptedRun, RibError, nearest
from rib_harness.progress import Progress
from rib_harness.readers import heeded
from rib_harness.signals import StopFlag
from rib_harness.store import write_atomically

#: Updates between two values of the loss that a tracker is told.
LOG_EVERY = 10

#: (model, batch) → a scalar, the mean over the batch.
Loss = Callable[[Classifier, Batch], Tensor]


class DamagedStateError(RibError):
    """What a fit kept is not what was written."""


class Stateful(Protocol):
    """What a method hands to `fit` to be saved and restored with it."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors, numbers, texts, and dicts and lists of them."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """The inverse."""
        ...


class Epochs(Protocol):
    """The data of a fit."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def steps(self, batch_size: int) -> int:
        """Updates an epoch."""
        ...

    def epoch(self, epoch: int, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from the `start`-th on, in an order made by (seed, epoch)."""
        ...


@dataclass(frozen=True)
class FitJob:
    """One call of `fit`: where it runs and where it keeps its state.

    Args:
        accelerator: device, precision and gradient scaling.
        seed: of the run; `stage` counts the calls of one method.
        work: folder for the state; None keeps none.
        save_every: seconds between saves; 0 saves at each step.
        label: for the progress bar and for messages.
        correct: (logits, labels) → how many are right, for the log.
        probe: measures the model every so many updates.
        whole: the model that a fit trains → the classifier that is measured.
        log: (numbers, update) → a tracker.
    """

    accelerator: Accelerator
    seed: int
    stage: int
    work: Path | None
    save_every: float
    label: str
    progress: Progress
    correct: Callable[[Tensor, Tensor], int]
    probe: Probe | None = None
    whole: Callable[[Classifier], Classifier] = lambda model: model
    log: Log | None = None

    @property
    def stage_seed(self) -> int:
        """A seed of this stage's own."""
        return self.seed * 1009 + self.stage


def fit(
    model: Classifier,
    loss: Loss,
    data: Epochs,
    recipe: Recipe,
    job: FitJob,
    *,
    ema: float | None = None,
    state: Mapping[str, Stateful] | None = None,
    after_step: Callable[[], None] | None = None,
    lr_scales: Mapping[str, float] | None = None,
) -> Classifier:
    """Train the parameters of `model` that require gradients.

    Args:
        model: trained in place.
        loss: see `Loss`.
        data: batches by epoch.
        recipe: optimizer, schedule, length.
        job: where and as which stage.
        ema: decay of an exponential moving average of the weights; if given, the average is
            returned.
        state: what else changes during the fit, by name; saved and restored with it.
        after_step: called after each update, while the gradients that made it are still there,
            unscaled.
        lr_scales: factors on the learning rate by the name of the parameter, 1 where none is
            given; read before each update, so that `after_step` may change them. A name that the
            model does not have is a ConfigError.

    Returns:
        The trained classifier, in eval mode.

    Raises:
        DivergedError: the loss or a weight is not finite.
        InterruptedRun: stopped by a signal; the state is on disk.
    """
    finished = job.work / f"stage-{job.stage}.safetensors" if job.work else None
    device = job.accelerator.device
    model.to(device)
    extra = dict(state or {})
    if finished is not None and (tree := _kept_tree(finished, job)) is not None:
        model.load_state_dict(tree["model"])
        _restore_extra(extra, tree)
        _write_history(job, tree["history"])
        return model.eval()
    with seeded(f"{job.seed}/{job.stage}"):
        run = _Fit(model, loss, data, recipe, job, ema, extra, after_step, lr_scales)
        result = run.run()
    if finished is not None:
        tree = {
            "model": result.state_dict(),
            "extra": _states_of(extra),
            "history": run.history,
        }
        _keep_tree(finished, tree)
        (finished.parent / f"state-{job.stage}.safetensors").unlink(missing_ok=True)
    return result


class _Fit:
    """The state of one fit."""

    def __init__(
        self,
        model: Classifier,
        loss: Loss,
        data: Epochs,
        recipe: Recipe,
        job: FitJob,
        ema: float | None,
        extra: dict[str, Stateful],
        after_step: Callable[[], None] | None = None,
        lr_scales: Mapping[str, float] | None = None,
    ):
        self.after_step, self.lr_scales = after_step, lr_scales
        self.model, self.loss, self.data, self.recipe, self.job = model, loss, data, recipe, job
        self.per_epoch = data.steps(recipe.batch_size)
        limit = math.inf if recipe.max_steps is None else recipe.max_steps
        self.total = int(min(recipe.epochs * self.per_epoch, limit))
        named = dict(model.named_parameters())
        trained = {name: p for name, p in named.items() if p.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        if not self.parameters:
            raise ConfigError([f"{job.label}: no parameter of the model requires gradients."])
        if wrong := [name for name in lr_scales or () if name not in named]:
            raise ConfigError(
                [
                    f"{job.label}: lr_scales has {wrong[0]!r}, which is no parameter of the model."
                    f"{nearest(wrong[0], named)}"
                ]
            )
        # A rate of its own needs a group of its own.
        groups = None if lr_scales is None else [{"params": [p]} for p in self.parameters]
        optimizer = make_optimizer(recipe, groups or self.parameters)
        self.set_lr = make_schedule(recipe, optimizer, self.total, self.per_epoch)
        # Not `accelerator.prepare`, which would keep every fit's optimizer for the whole run.
        self.optimizer = AcceleratedOptimizer(
            optimizer, device_placement=False, scaler=job.accelerator.scaler
        )
        self.average: AveragedModel | None = None
        if ema is not None:
            self.average = AveragedModel(
                model, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True
            )
        self.extra = extra
        self.step = 0
        self.sums = {"loss": 0.0, "correct": 0, "judged": 0, "images": 0, "seconds": 0.0}
        self.history: list[dict[str, Any]] = []
        self.last_good = "none yet"

    def run(self) -> Classifier:
        self.restore()
        train_mode(self.model)
        if self.step == 0:
            self.look()
        bar = self.job.progress.bar(
            self.job.label, self.total * self.recipe.batch_size, self.step * self.recipe.batch_size
        )
        with StopFlag() as stop, heeded(stop):
            try:
                self.loop(stop, bar.advance)
            finally:
                bar.close()
        self.check_weights()
        _write_history(self.job, self.history)
        self.optimizer.zero_grad()  # gradients are as large as the weights
        return self.trained.eval()

    @property
    def lr(self) -> float:
        """The learning rate of the last update, the largest where there are several."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    @property
    def trained(self) -> Classifier:
        """What the fit gives: the model, or the average of its weights."""
        return cast(Classifier, self.average.module if self.average is not None else self.model)

    def look(self) -> None:
        """Probe the model, if it is time to."""
        if self.job.probe is not None and self.job.probe.due(self.step, self.total):
            found = self.job.probe(self.job.whole(self.trained))
            self.history.append({"stage": self.job.stage, "step": self.step, "probe": found})
            self.track({f"probe/{name}": value for name, value in found.items()})

    def track(self, numbers: Mapping[str, float]) -> None:
        """Tell the trackers; a later stage of a method has curves of its own."""
        if self.job.log is not None:
            prefix = f"stage{self.job.stage}/" if self.job.stage else ""
            self.job.log({prefix + name: value for name, value in numbers.items()}, self.step)

    def loop(self, stop: StopFlag, advance: Callable[..., None]) -> None:
        saved = time.monotonic()
        while self.step < self.total:
            epoch, start = divmod(self.step, self.per_epoch)
            batches = self.data.epoch(epoch, self.recipe.batch_size, self.job.stage_seed, start)
            begun = time.monotonic()
            for batch in batches:
                value, right = self.update(batch)
                now = time.monotonic()
                self.count(value, right, len(batch), now - begun)
                begun = now
                advance(len(batch), **self.numbers())
                if self.step % LOG_EVERY == 0:
                    self.track({"loss": value, "lr": self.lr})
                self.look()
                if self.step % self.per_epoch == 0 or self.step == self.total:
                    self.end_epoch(epoch)
                if stop.hit:
                    self.save()
                    raise InterruptedRun
                if now - saved >= self.job.save_every:
                    self.save()
                    saved = time.monotonic()
                if self.step == self.total:
                    break

    def update(self, batch: Batch) -> tuple[float, int | None]:
        """One optimizer step; gradients of the micro-batches add up to the batch's mean."""
        accelerator, value = self.job.accelerator, 0.0
        right: int | None = None
        self.set_lr(self.step)
        if self.lr_scales is not None:
            for name, group in zip(self.names, self.optimizer.param_groups, strict=True):
                group["lr"] *= self.lr_scales.get(name, 1.0)
        self.optimizer.zero_grad()
        for part in batch.split(self.recipe.micro_batch):
            share = len(part) / len(batch)
            try:
                with _first_output(self.model) as seen, accelerator.autocast():
                    loss = self.loss(self.model, part)
                part_value = loss.item()
                self.check_loss(part_value)
                accelerator.backward(loss * share)
            except torch.OutOfMemoryError as error:
                raise RibError(
                    f"{self.job.label}: out of memory with {len(part)} images at once; "
                    f"--set recipe.micro_batch={max(len(part) // 2, 1)} keeps the batch and adds "
                    "up the gradients of smaller pieces (batch-norm then sees the pieces)."
                ) from error
            value += part_value * share
            if seen and len(seen[0]) == len(part):  # a method may call it on a piece first
                right = (right or 0) + self.job.correct(seen[0].detach(), part.labels)
        if self.recipe.clip_grad is not None:
            accelerator.unscale_gradients(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_grad)
        self.optimizer.step()
        if self.after_step is not None:
            self.after_step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        self.last_good = f"step {self.step}, loss {value:.4f}"
        return value, right

    def check_loss(self, value: float) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"{self.job.label}: the loss is {value} at step {self.step + 1} of {self.total} "
                f"(lr {self.lr:.3g}); the last good one: "
                f"{self.last_good}. A smaller recipe.lr, recipe.clip_grad=1 or a longer "
                "recipe.warmup_steps often helps."
            )

    def count(self, value: float, right: int | None, images: int, seconds: float) -> None:
        self.sums["loss"] += value * images
        if right is not None:
            self.sums["correct"] += right
            self.sums["judged"] += images
        self.sums["images"] += images
        self.sums["seconds"] += seconds

    def end_epoch(self, epoch: int) -> None:
        self.check_weights()
        speed = self.sums["images"] / max(self.sums["seconds"], 1e-9)
        row = {"stage": self.job.stage, "epoch": epoch + 1, "step": self.step}
        numbers = self.numbers()
        self.history.append({**row, **numbers, "images_per_second": speed})
        self.track({f"epoch/{name}": value for name, value in numbers.items()})
        self.sums = dict.fromkeys(self.sums, 0)

    def numbers(self) -> dict[str, float]:
        """Means over the epoch so far; no accuracy where no loss calls the model on its batch."""
        s = self.sums
        numbers = {"loss": s["loss"] / s["images"], "lr": self.lr}
        if s["judged"]:
            numbers["accuracy"] = 100 * s["correct"] / s["judged"]
        return numbers

    def check_weights(self) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise DivergedError(
                    f"{self.job.label}: the weight {name} is not finite after step {self.step}; "
                    f"the last finite loss: {self.last_good}. A smaller recipe.lr often helps."
                )

    @property
    def state_file(self) -> Path | None:
        return self.job.work and self.job.work / f"state-{self.job.stage}.safetensors"

    def save(self) -> None:
        if self.state_file is None:
            return
        scaler = self.job.accelerator.scaler
        tree = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "extra": _states_of(self.extra),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "random": random_state(),
            "step": self.step,
            "sums": self.sums,
            "history": self.history,
            "last_good": self.last_good,
        }
        _keep_tree(self.state_file, tree)

    def restore(self) -> None:
        tree = None if self.state_file is None else _kept_tree(self.state_file, self.job)
        if tree is None:
            return
        self.model.load_state_dict(tree["model"])
        self.optimizer.load_state_dict(tree["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(tree["average"])
        _restore_extra(self.extra, tree)
        if tree["scaler"] is not None and self.job.accelerator.scaler is not None:
            self.job.accelerator.scaler.load_state_dict(tree["scaler"])
        set_random_state(tree["random"])
        self.step, self.sums = tree["step"], tree["sums"]
        self.history, self.last_good = tree["history"], tree["last_good"]
        self.job.progress.say(f"{self.job.label}: goes on at step {self.step} of {self.total}")


def _keep_tree(path: Path, tree: Mapping[str, Any]) -> None:
    write_atomically(path, pack_tree({**tree, "of": _step_and_name(path)}))


def _kept_tree(path: Path, job: FitJob) -> Any:
    """What a fit kept; None where nothing is there, or not what was written."""
    if not path.exists():
        return None
    try:
        tree = unpack_tree(path)
        if tree["of"] != _step_and_name(path):
            raise DamagedStateError(f"{path} is of another fit ({'/'.join(tree['of'])})")
        return tree
    except DamagedStateError as error:
        job.progress.say(f"{job.label}: {error}; this fit starts again")
    clear(path)
    path.unlink(missing_ok=True)
    return None


def _step_and_name(path: Path) -> list[str]:
    """The end of KEY/CODE/NAME: the same wherever the store is moved to."""
    return list(path.parts[-3:])


def _write_history(job: FitJob, rows: list[dict[str, Any]]) -> None:
    if job.work is not None:
        path = job.work / f"history-{job.stage}.jsonl"
        clear(path)
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def _states_of(extra: Mapping[str, Stateful]) -> dict[str, Any]:
    return {name: item.state_dict() for name, item in extra.items()}


def _restore_extra(extra: Mapping[str, Stateful], tree: Mapping[str, Any]) -> None:
    for name, item in extra.items():
        item.load_state_dict(tree["extra"][name])


def train_mode(model: nn.Module) -> None:
    """Train mode, but eval mode for every part whose parameters are all frozen.

    So that dropout and batch-norm of a frozen encoder neither act nor move.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


class _first_output:  # noqa: N801 - reads as the statement it is
    """While the block runs, keeps the head's first output, for the accuracy in the log."""

    def __init__(self, model: Classifier):
        self.model, self.seen = model, []  # type: ignore[var-annotated]

    def __enter__(self) -> list[Tensor]:
        self.hook = self.model.head.register_forward_hook(
            lambda module, inputs, output: self.seen.extend([] if self.seen else [output])
        )
        return self.seen

    def __exit__(self, *error: object) -> None:
        self.hook.remove()


def make_optimizer(
    recipe: Recipe, parameters: list[nn.Parameter] | list[dict[str, Any]]
) -> Optimizer:
    """A class of torch.optim by its name in lower case, else one of timm's.

    `sgd` is torch's, without Nesterov; timm's optimizer of that name has Nesterov momentum.
    """
    own = {n.lower(): c for n, c in vars(torch.optim).items()
           if isinstance(c, type) and issubclass(c, Optimizer) and c is not Optimizer}  # fmt: skip
    name = recipe.optimizer.lower()
    if name in own:
        options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        if name in ("sgd", "rmsprop"):
            options["momentum"] = recipe.momentum
        return own[name](parameters, **options)
    from timm.optim import create_optimizer_v2, list_optimizers

    known = list_optimizers()
    if name not in known:
        raise ConfigError(
            [
                f"recipe.optimizer: {recipe.optimizer!r} is in neither torch.optim nor timm."
                f"{nearest(name, [*own, *known])}"
            ]
        )
    optimizer: Optimizer = create_optimizer_v2(
        parameters, name, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
    )
    return optimizer


def check_recipe(recipe: Recipe) -> None:
    """Raise now for an optimizer or a schedule that does not exist, not after an hour's work.

    Raises:
        ConfigError: with the nearest name.
    """
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
    try:
        optimizer = make_optimizer(recipe, parameters)
        make_schedule(recipe, optimizer, total=10, per_epoch=10)(0)
        torch.stack([p.sum() for p in parameters]).sum().backward()
        optimizer.step()
        pack_tree(optimizer.state_dict())
    except RibError:
        raise
    except Exception as error:
        raise ConfigError(
            [
                f"recipe.optimizer={recipe.optimizer} with recipe.schedule={recipe.schedule} does "
                f"not work with this training loop: {type(error).__name__}: {error}"
            ]
        ) from error


def lr_factor(schedule: str, step: int, total: int, warmup: int) -> float:
    """Share of the peak learning rate at a step, counted from 0.

    Linear warmup to the peak, then half a cosine (or a line) to 0 at `total`: the schedule of
    the ImageNet-RIB reference code, which it has from WiSE-FT's `cosine_lr`.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(total - warmup, 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0


def make_schedule(
    recipe: Recipe, optimizer: Optimizer, total: int, per_epoch: int
) -> Callable[[int], None]:
    """A function that sets the learning rate for a step; it has no state to save."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    if recipe.schedule in ("cosine", "linear", "constant"):

        def set_lr(step: int) -> None:
            factor = lr_factor(recipe.schedule, step, total, recipe.warmup_steps)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor

        return set_lr
    from timm.scheduler import create_scheduler_v2

    known = ("tanh", "step", "poly")
    if recipe.schedule not in known:
        raise ConfigError(
            [
                f"recipe.schedule: {recipe.schedule!r} is not known. Choose one of: cosine, "
                f"linear, constant, and timm's {', '.join(known)}."
            ]
        )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        recipe.schedule,
        num_epochs=max(math.ceil(total / max(per_epoch, 1)), 1),
        min_lr=0.0,
        warmup_epochs=0,
        decay_epochs=max(recipe.epochs // 3, 1),  # of "step"; timm's own 90 would never come
        decay_rate=0.9 if recipe.schedule == "poly" else 0.1,  # of "poly" it is the power
        step_on_epochs=False,
        updates_per_epoch=per_epoch,
    )

    def set_timm_lr(step: int) -> None:
        scheduler.step_update(step)
        if step < recipe.warmup_steps:  # timm's warmup counts whole epochs
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * lr_factor("constant", step, total, recipe.warmup_steps)

    return set_timm_lr


def pack_tree(tree: Any) -> bytes:
    """Tensors, numbers, texts, dicts, lists and tuples as one safetensors file; no pickle."""
    tensors: dict[str, Tensor] = {}

    def shape_of(node: Any) -> Any:
        if isinstance(node, Tensor):
            name = f"t{len(tensors)}"
            tensors[name] = node.detach().cpu().contiguous().clone()
            return {"t": name}
        if isinstance(node, Mapping):
            return {"d": [[shape_of(key), shape_of(value)] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            return {"l" if isinstance(node, list) else "u": [shape_of(item) for item in node]}
        if isinstance(node, torch.dtype):
            return {"y": str(node).removeprefix("torch.")}
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise TypeError(f"a fit's state may not hold {type(node).__name__}: {node!r}")

    shape = json.dumps(shape_of(tree))
    return save(tensors, metadata={"tree": shape, "checksum": _checksum(shape, tensors)})


def unpack_tree(path: Path) -> Any:
    """The inverse of `pack_tree`.

    Raises:
        DamagedStateError: it is not what was written, or of a version that kept no checksum.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DamagedStateError(f"{path} is damaged ({error})") from None
    if "checksum" not in said:
        raise DamagedStateError(f"{path} is of an earlier version, without a checksum")
    if "tree" not in said or said["checksum"] != _checksum(said["tree"], tensors):
        raise DamagedStateError(f"{path} is damaged (its checksum differs)")

    def build(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        ((kind, content),) = node.items()
        if kind == "t":
            return tensors[content]
        if kind == "y":
            return getattr(torch, content)
        if kind == "d":
            return {build(key): build(value) for key, value in content}
        return [build(item) for item in content] if kind == "l" else tuple(map(build, content))

    return build(json.loads(said["tree"]))


def _checksum(shape: str, tensors: Mapping[str, Tensor]) -> str:
    """Of all that `unpack_tree` gives."""
    made = xxhash.xxh3_128(shape.encode())
    for name, tensor in sorted(tensors.items()):
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        made.update(tensor.flatten().view(torch.uint8).numpy().data)
    return made.hexdigest()
