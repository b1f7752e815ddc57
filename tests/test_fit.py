"""The training loop. Expected values: loops written out in plain torch, and closed forms."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rib_harness import Batch, Classifier, ConfigError, DivergedError, RibError, Task
from rib_harness.config import Recipe
from rib_harness.engine.data import epoch_order
from rib_harness.engine.fit import (
    lr_factor,
    make_optimizer,
    make_schedule,
    pack_tree,
    unpack_tree,
)
from rib_harness.errors import InterruptedRun
from rib_harness.progress import Silence
from rib_harness.testing import tiny_classifier, tiny_images, tiny_task


def states_equal(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def by_hand(task: Task, epochs: int, lr: float) -> Classifier:
    """SGD with momentum and a per-step cosine, as a loop that anyone can read."""
    model = task.pretrained.copy().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    per_epoch = len(epoch_order(len(task.images), 8, [0]))
    everything = next(task.batches(len(task.images)))
    for step in range(epochs * per_epoch):
        epoch, position = divmod(step, per_epoch)
        chosen = torch.from_numpy(epoch_order(len(task.images), 8, [0, epoch])[position])
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / (epochs * per_epoch)))
        loss = F.cross_entropy(model(everything.images[chosen]), everything.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_fit_equals_a_plain_torch_loop_to_the_bit() -> None:
    task = tiny_task(pretrained=tiny_classifier(batchnorm=False))
    assert states_equal(task.fit(task.pretrained.copy()), by_hand(task, 3, 0.05))


def test_the_pretrained_classifier_is_left_alone_and_the_loss_falls() -> None:
    task = tiny_task(epochs=10)
    before = task.pretrained.fingerprint()
    model = task.fit(task.pretrained.copy())
    batch = next(task.batches(len(task.images)))
    assert task.pretrained.fingerprint() == before
    assert task.cross_entropy(model, batch) < task.cross_entropy(task.pretrained, batch)
    assert not model.training


SETTINGS: list[dict[str, Any]] = [
    {},
    {"optimizer": "adamw", "lr": 0.01, "schedule": "linear", "warmup_steps": 3},
    {"optimizer": "lamb", "lr": 0.01, "schedule": "poly"},
    {"micro_batch": 3, "clip_grad": 0.5, "augment": "crop-flip"},
    {"max_steps": 7, "precision": "bf16"},
]


class Counter:
    """A method's own state: it changes at each step, and the loss depends on it."""

    def __init__(self) -> None:
        self.seen = torch.zeros(1)

    def state_dict(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.seen = state["seen"]


def two_stages(task: Task, stop_at: int | None = None, how: str = "raise") -> Classifier:
    """A method with two fits, an average of the weights, and state of its own."""
    counter, calls = Counter(), 0

    def loss(model: Classifier, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            if how == "raise":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        counter.seen = counter.seen + batch.images.mean()
        return task.cross_entropy(model, batch) * (1 + 0.1 * torch.tanh(counter.seen.sum()))

    model = task.fit(task.pretrained.copy(), loss, state={"counter": counter}, ema=0.8)
    return task.fit(model.copy(), loss, state={"counter": counter}, lr=0.02)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("how", ["raise", "sigterm"])
def test_a_fit_that_was_stopped_anywhere_ends_as_one_that_was_not(
    settings: dict[str, Any], how: str, tmp_path: Path
) -> None:
    straight = two_stages(tiny_task(work=None, **settings))
    for stop_at in (1, 2, 8, 10, 14):
        work = tmp_path / f"{stop_at}"
        work.mkdir()
        try:
            resumed = two_stages(tiny_task(work=work, **settings), stop_at, how)
        except (KeyboardInterrupt, InterruptedRun):
            resumed = two_stages(tiny_task(work=work, **settings))
        assert states_equal(resumed, straight), f"stopped at {stop_at}"


def test_a_stop_really_interrupts(tmp_path: Path) -> None:
    """The test above could pass if nothing ever stopped."""
    with pytest.raises(InterruptedRun):
        two_stages(tiny_task(work=tmp_path), 2, "sigterm")
    assert (tmp_path / "state-0.safetensors").exists()


def test_history_survives_a_stop(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    two_stages(tiny_task(work=tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        two_stages(tiny_task(work=tmp_path / "b"), 5)
    two_stages(tiny_task(work=tmp_path / "b"))

    def rows(folder: str) -> list[dict[str, float]]:
        text = (tmp_path / folder / "history-0.jsonl").read_text()
        made = [json.loads(line) for line in text.splitlines()]
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in made]

    assert rows("a") == rows("b")
    assert [row["epoch"] for row in rows("a")] == [1, 2, 3]
    assert rows("a")[0].keys() == {"stage", "epoch", "step", "loss", "accuracy", "lr"}


class Told(Silence):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def stopped(work: Path) -> None:
    """Two stages, stopped in the second: the first is finished."""
    with pytest.raises(KeyboardInterrupt):
        two_stages(tiny_task(work=work), 14)


def resumed(work: Path) -> tuple[Classifier, list[str]]:
    task = tiny_task(work=work)
    task.progress = told = Told()
    return two_stages(task), told.lines


def one_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 1  # among the weights
    file.write_bytes(data)


def without_checksum(file: Path) -> None:
    """As an earlier version wrote it."""
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        file.write_bytes(save(tensors, {"tree": opened.metadata()["tree"]}))


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (one_bit, "is damaged (its checksum differs)"),
    "cut off": (lambda file: os.truncate(file, file.stat().st_size // 2), "is damaged ("),
    "empty": (lambda file: file.write_bytes(b""), "is damaged ("),
    "a folder": (folder_instead, "is damaged ("),
    "an earlier version": (without_checksum, "is of an earlier version, without a checksum"),
    "of another fit": (
        lambda file: file.write_bytes(pack_tree({**unpack_tree(file), "of": ["a", "b", "c"]})),
        "is of another fit (a/b/c)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["state-1.safetensors", "stage-0.safetensors"])
def test_a_state_that_does_not_verify_is_named_and_its_fit_starts_again(
    name: str, damage: str, tmp_path: Path
) -> None:
    """Nothing of it is believed: the weights are those of an undisturbed run."""
    straight = two_stages(tiny_task())
    stopped(tmp_path)
    do, said = DAMAGED[damage]
    do(tmp_path / name)
    made, lines = resumed(tmp_path)
    assert states_equal(made, straight)
    told = [line for line in lines if "starts again" in line]
    assert len(told) == 1
    assert f"{tmp_path / name} {said}" in told[0]
    goes_on = [line for line in lines if "goes on at step" in line]
    assert len(goes_on) == (name == "stage-0.safetensors")  # the other fit is left as it is


@pytest.mark.parametrize("text", ["", "nonsense", '{"stage": 0, "loss": 0}\n', None])
def test_the_history_of_a_finished_fit_is_that_of_its_state(
    text: str | None, tmp_path: Path
) -> None:
    stopped(tmp_path)
    file = tmp_path / "history-0.jsonl"
    before = file.read_text()
    if text is None:
        folder_instead(file)
    else:
        file.write_text(text)
    resumed(tmp_path)
    assert file.read_text() == before


def test_another_seed_gives_another_result() -> None:
    task = tiny_task(seed=1)
    other = tiny_task(seed=2)
    assert not states_equal(task.fit(task.pretrained.copy()), other.fit(other.pretrained.copy()))


def test_micro_batches_add_up_to_the_batch() -> None:
    """Without batch-norm and dropout the mean over a batch does not depend on its pieces."""
    whole = tiny_task(pretrained=tiny_classifier(batchnorm=False), epochs=1)
    pieces = tiny_task(pretrained=tiny_classifier(batchnorm=False), epochs=1, micro_batch=3)
    a = whole.fit(whole.pretrained.copy()).state_dict()
    b = pieces.fit(pieces.pretrained.copy()).state_dict()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_clipping_bounds_the_step() -> None:
    task = tiny_task(pretrained=tiny_classifier(batchnorm=False), clip_grad=1e-3, momentum=0.0,
                     max_steps=1, lr=1.0)  # fmt: skip
    model = task.fit(task.pretrained.copy())
    moved = [(a - b).square().sum() for a, b in
             zip(model.parameters(), task.pretrained.parameters(), strict=True)]  # fmt: skip
    assert torch.stack(moved).sum().sqrt().item() == pytest.approx(1e-3, rel=1e-3)


def test_frozen_parts_stay_in_eval_mode_and_do_not_move() -> None:
    task = tiny_task()
    model = task.pretrained.copy()
    model.encoder.requires_grad_(False)
    fitted = task.fit(model)
    assert states_equal(fitted.encoder, task.pretrained.encoder)
    assert not states_equal(fitted.head, task.pretrained.head)


def test_nothing_to_train_is_an_error() -> None:
    task = tiny_task()
    with pytest.raises(ConfigError, match="no parameter of the model requires gradients"):
        task.fit(task.pretrained.frozen())


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_good_value() -> None:
    task, calls = tiny_task(), 0

    def loss(model: Classifier, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        return task.cross_entropy(model, batch) * (math.nan if calls == 4 else 1)

    with pytest.raises(DivergedError, match=r"loss is nan at step 4 of 9 .* step 3, loss \d"):
        task.fit(task.pretrained.copy(), loss)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_short_memory_in_training_says_which_setting_helps_and_changes_nothing_silently(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task()

    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("simulated")

    def loss(model: Classifier, batch: Batch) -> Tensor:
        if where == "forward":
            fail()
        return task.cross_entropy(model, batch)

    if where == "backward":
        monkeypatch.setattr(task.accelerator, "backward", fail)
    with pytest.raises(
        RibError, match=r"out of memory with 8 images .* recipe.micro_batch=4 keeps"
    ):
        task.fit(task.pretrained.copy(), loss)


def test_weights_that_are_not_finite_are_never_returned() -> None:
    """A step too far makes infinite weights without an infinite loss before."""
    task = tiny_task(max_steps=1, lr=1e38, momentum=0.0)

    def loss(model: Classifier, batch: Batch) -> Tensor:
        return task.cross_entropy(model, batch) * 1e4

    with pytest.raises(DivergedError, match="is not finite after step 1"):
        task.fit(task.pretrained.copy(), loss)


def test_the_schedule_is_that_of_wise_ft() -> None:
    """`cosine_lr` of mlfoundations/wise-ft, which the reference code uses, written out."""
    warmup, total = 5, 20
    for step in range(total):
        if step < warmup:
            expected = (step + 1) / warmup
        else:
            e, es = step - warmup, total - warmup
            expected = 0.5 * (1 + math.cos(math.pi * e / es))
        assert lr_factor("cosine", step, total, warmup) == pytest.approx(expected)


def test_the_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for step in range(10):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr_factor("cosine", step, 10, 0))
        optimizer.step()
        oracle.step()


@pytest.mark.parametrize("name", ["tanh", "step", "poly", "cosine", "linear"])
def test_every_schedule_warms_up_by_steps_and_ends_lower(name: str) -> None:
    recipe = Recipe(schedule=name, warmup_steps=3, lr=1.0, epochs=9)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    set_lr = make_schedule(recipe, optimizer, 90, 10)
    rates = []
    for step in range(90):
        set_lr(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert rates[3] > 0.9
    assert rates[-1] < 0.2
    set_lr(40)  # no state: any step again, as after a resume
    assert optimizer.param_groups[0]["lr"] == rates[40]


def test_optimizers_come_from_torch_then_timm_and_a_typo_is_told() -> None:
    parameters = [nn.Parameter(torch.zeros(2, 2))]
    sgd = make_optimizer(Recipe(optimizer="sgd"), parameters)
    assert type(sgd) is torch.optim.SGD
    assert sgd.param_groups[0]["nesterov"] is False
    assert sgd.param_groups[0]["momentum"] == 0.9
    assert type(make_optimizer(Recipe(optimizer="AdamW"), parameters)) is torch.optim.AdamW
    assert type(make_optimizer(Recipe(optimizer="lion"), parameters)).__name__ == "Lion"
    with pytest.raises(ConfigError, match=r"'adamv' is in neither .* Did you mean 'adam"):
        make_optimizer(Recipe(optimizer="adamv"), parameters)


def test_a_tree_of_state_is_read_back_as_it_was(tmp_path: Path) -> None:
    tree = {
        "a": [1, 2.5, None, True, "x", (3, torch.arange(4))],
        0: {"step": torch.tensor(3.0), "betas": (0.9, 0.999)},
        "nan": math.inf,
        "empty": {},
    }
    (tmp_path / "t.safetensors").write_bytes(pack_tree(tree))
    back = unpack_tree(tmp_path / "t.safetensors")
    assert torch.equal(back["a"][5][1], torch.arange(4))
    assert back["a"][:5] == tree["a"][:5]  # type: ignore[index]
    assert back[0]["betas"] == (0.9, 0.999)
    assert torch.equal(back[0]["step"], torch.tensor(3.0))
    assert back["nan"] == math.inf
    assert back["empty"] == {}
    with pytest.raises(TypeError, match="may not hold object"):
        pack_tree({"a": object()})


def test_answers_are_kept_and_equal_those_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny_task(images=tiny_images(30))
    teacher = tiny_classifier(seed=5)
    kept = task.answers_of(teacher)
    monkeypatch.setattr("rib_harness.engine.task.KEEP_LIMIT", 0)
    fresh = task.answers_of(teacher)
    for batch in task.batches(7):
        torch.testing.assert_close(kept(batch), fresh(batch), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(kept(batch), teacher(batch.images), rtol=1e-5, atol=1e-6)


def test_a_checkpoint_that_was_not_declared_is_told() -> None:
    with pytest.raises(ConfigError, match="no checkpoint of 'lp'; declare it in `needs`"):
        tiny_task().checkpoint("lp")
