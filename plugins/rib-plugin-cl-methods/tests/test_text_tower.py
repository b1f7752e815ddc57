"""The methods with a text tower: flyp, carot, lipsum-ft, car-ft, clipood, on a toy of both towers.

Expected values come from open_clip's loss, from loops and closed forms in numpy, or from training
loops written out in plain torch; each test says from which.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rib_plugin_cl_methods import carot
from rib_plugin_cl_methods.car_ft import ContextAwareFineTuning, contexts
from rib_plugin_cl_methods.carot import CalibratedRobustFinetuning, unorthogonal
from rib_plugin_cl_methods.clipood import BetaAverage, GeneralizingClip, class_texts
from rib_plugin_cl_methods.divergence import divergence
from rib_plugin_cl_methods.flyp import FinetuneLikeYouPretrain
from rib_plugin_cl_methods.ft import FineTuning
from rib_plugin_cl_methods.lipsum_ft import LipsumFineTuning
from rib_plugin_cl_methods.twotower import TwoTowers, captions, contrastive
from torch import Tensor, nn

from rib_harness import Batch, Classifier, ConfigError, Task
from rib_harness.engine.fit import _Fit
from rib_harness.testing import TinyTextTower, tiny_clip, tiny_images, tiny_task

#: With a learning rate at which the toy moves.
METHODS: dict[str, Callable[[], Any]] = {
    "flyp": lambda: FinetuneLikeYouPretrain(lr=0.01),
    "carot": lambda: CalibratedRobustFinetuning(lr=0.01, decay=(0.5, 0.5), every=1),
    "lipsum-ft": lambda: LipsumFineTuning(texts=5),
    "car-ft": lambda: ContextAwareFineTuning(),
}
every_method = pytest.mark.parametrize("name", METHODS)
both_towers = pytest.mark.parametrize("name", ["flyp", "carot"])

#: Classes with one id, with two, and ids that belong to none.
SEVERAL = [(3,), (5, 7), (0, 1, 9)]
#: One batch holds the whole set.
WHOLE: dict[str, Any] = {"batch_size": 24, "momentum": 0.0, "schedule": "constant"}


class OneCaption(TinyTextTower):
    """With one prompt a class and the same random texts always, nothing is drawn."""

    def captions(self, label: int) -> list[str]:
        return [f"19 {label}"]

    def random_tokens(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        return torch.arange(count * 4).view(count, 4) * 7 % 20


def task_for(**arguments: Any) -> Task:
    pretrained, text = tiny_clip()
    return tiny_task(**{"pretrained": pretrained, "text": text, **arguments})


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def differing(left: dict[str, Tensor], right: dict[str, Tensor]) -> set[str]:
    assert list(left) == list(right)
    return {name for name in left if not torch.equal(left[name], right[name])}


def assert_same(left: nn.Module, right: nn.Module) -> None:
    """All parameters and buffers are equal to the bit."""
    assert differing(left.state_dict(), right.state_dict()) == set()


def whole_batch(task: Task) -> Batch:
    return next(task.batches(len(task.images)))


def fit_of(method: Any, task: Task, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """What a method hands to the loop, which is not run: model, loss and the rest."""
    calls: list[tuple[Any, Any, Any]] = []

    def fit(self: Task, model: Classifier, loss: Any = None, **rest: Any) -> Classifier:
        calls.append((model, loss, rest))
        return model

    with monkeypatch.context() as patch:
        patch.setattr(Task, "fit", fit)
        method.finetune(task)
    [call] = calls
    return call


def shaken(model: nn.Module) -> None:
    """Move every weight, so that the model is not at its start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def softmax(rows: np.ndarray) -> np.ndarray:
    exp = np.exp(rows - rows.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def kl(teacher: np.ndarray, student: np.ndarray) -> float:
    """Mean over rows of Σ q log(q / p)."""
    q, p = softmax(teacher), softmax(student)
    return float((q * np.log(q / p)).sum(1).mean())


def contrastive_by_hand(similarities: np.ndarray, labels: list[int]) -> float:
    """Each item against its own and those of other classes, over rows and over columns."""
    total = 0.0
    for rows in (similarities, similarities.T):
        for i, row in enumerate(rows):
            others = [row[j] for j in range(len(row)) if j == i or labels[j] != labels[i]]
            total += np.log(np.sum(np.exp(others))) - row[i]
    return total / (2 * len(labels))


def random_similarities(n: int) -> Tensor:
    return 3 * torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# The contrastive loss


def test_with_distinct_classes_the_loss_is_clips_in_value_and_gradient() -> None:
    """Source: open_clip.loss.ClipLoss."""
    loss = pytest.importorskip("open_clip.loss").ClipLoss()
    draw = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images, texts = (F.normalize(one, dim=1) for one in draw[:2])
    ours = [x.clone().requires_grad_() for x in (images, texts, torch.tensor(4.0).double())]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    got = contrastive(ours[2] * ours[0] @ ours[1].T, torch.tensor([9, 1, 0, 3, 4, 7, 5]))
    expected = loss(*theirs)
    torch.testing.assert_close(got, expected)
    got.backward()
    expected.backward()
    for mine, his in zip(ours, theirs, strict=True):
        assert mine.grad is not None and mine.grad.abs().max() > 1e-3
        torch.testing.assert_close(mine.grad, his.grad)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0], [4, 4, 4, 4, 4, 1], [2] * 6, [0]])
def test_items_of_the_same_class_are_no_negatives(labels: list[int]) -> None:
    """Source: a loop in numpy that leaves them out."""
    similarities = random_similarities(len(labels)).requires_grad_()
    got = contrastive(similarities, torch.tensor(labels))
    expected = contrastive_by_hand(similarities.detach().numpy(), labels)
    assert got.item() == pytest.approx(expected, abs=1e-12)
    got.backward()
    assert similarities.grad is not None and similarities.grad.isfinite().all()
    for i, j in np.ndindex(len(labels), len(labels)):
        if i != j and labels[i] == labels[j]:
            assert similarities.grad[i, j] == 0


def test_the_loss_is_the_same_with_the_towers_swapped() -> None:
    """Source: the sum of both directions; and it leaves what it is given as it is."""
    similarities, labels = random_similarities(5), torch.tensor([0, 1, 1, 2, 0])
    before = similarities.clone()
    torch.testing.assert_close(contrastive(similarities, labels),
                               contrastive(similarities.T, labels))  # fmt: skip
    assert torch.equal(similarities, before)
    assert contrastive(similarities, labels) < contrastive(similarities, torch.arange(5))


def test_similarities_are_scaled_cosines_with_images_as_rows() -> None:
    """Source: numpy; features of another length than 1 are normalised."""
    pretrained, text = tiny_clip()
    pretrained.encoder = nn.Sequential(*list(pretrained.encoder)[:-1], nn.Linear(32, 6))
    model = TwoTowers(pretrained, text)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    tokens = text.tokens(["1", "19 4", "7"])
    with torch.no_grad():
        features, words = pretrained.features(images).numpy(), text(tokens).numpy()
        got = model.similarities(images, tokens)
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(got, np.exp(2.0) * rows @ words.T, rtol=1e-5, atol=1e-5)


# Captions


def test_captions_are_all_those_of_the_images_own_classes() -> None:
    """Source: the class map, written out by hand."""
    task = task_for(images=tiny_images(classes=3, class_map=SEVERAL))
    text, batch = task.text_tower(), whole_batch(task)
    prompts = [{"3", "19 3"}, {"5", "19 5", "7", "19 7"},
               {"0", "19 0", "1", "19 1", "9", "19 9"}]  # fmt: skip
    allowed = [{tuple(text.tokens([one])[0].tolist()) for one in some} for some in prompts]
    seen: list[set[tuple[int, ...]]] = [set(), set(), set()]
    for _ in range(40):
        rows = captions(task, text, batch).tolist()
        assert len(rows) == len(batch)
        for label, row in zip(batch.labels.tolist(), rows, strict=True):
            seen[label].add(tuple(row))
    assert seen == allowed


# What all of them promise


@every_method
def test_what_a_method_is_given_stays_and_it_gives_a_plain_classifier(name: str) -> None:
    """Source: the pretrained classifier's own state, and the given text tower's."""
    pretrained, text = tiny_clip()
    before, words = pretrained.fingerprint(), state_of(text)
    result = METHODS[name]().finetune(task_for(pretrained=pretrained, text=text))
    assert pretrained.fingerprint() == before
    assert differing(words, text.state_dict()) == set()
    assert not any(p.grad is not None for p in [*pretrained.parameters(), *text.parameters()])
    assert type(result) is Classifier
    assert not result.training
    assert all(parameter.requires_grad for parameter in result.parameters())
    assert differing(result.state_dict(), pretrained.state_dict()) == set(pretrained.state_dict())
    assert [v.shape for v in result.parameters()] == [v.shape for v in pretrained.parameters()]


@every_method
def test_no_epochs_give_the_pretrained_classifier(name: str) -> None:
    """Source: the pretrained classifier."""
    pretrained, _ = tiny_clip()
    result = METHODS[name]().finetune(task_for(epochs=0))
    torch.testing.assert_close(result.state_dict(), pretrained.state_dict())


@every_method
def test_the_same_seed_gives_the_same_weights_and_another_does_not(name: str) -> None:
    """Source: the same run twice, with the global generator elsewhere."""
    first = METHODS[name]().finetune(task_for())
    torch.rand(5)
    assert_same(METHODS[name]().finetune(task_for()), first)
    other = METHODS[name]().finetune(task_for(seed=1))
    assert differing(other.state_dict(), first.state_dict()) == set(first.state_dict())


def updates(monkeypatch: pytest.MonkeyPatch, kill: tuple[int, str] | None = None) -> list[int]:
    """The steps at which updates are made; one is interrupted before it, or before it is saved."""
    original, steps = _Fit.update, []

    def update(self: _Fit, batch: Any) -> Any:
        steps.append(self.step)
        if kill == (steps[-1], "before"):
            raise KeyboardInterrupt
        result = original(self, batch)
        if kill == (steps[-1], "after"):
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(_Fit, "update", update)
    return steps


# Nine steps, three an epoch.
@pytest.mark.parametrize("kill", [(1, "before"), (4, "after"), (8, "before")], ids=str)
@every_method
def test_a_run_that_was_killed_ends_like_one_that_was_not(
    name: str, kill: tuple[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: the same method without an interruption; it goes on, it does not start again."""
    expected = METHODS[name]().finetune(task_for())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        updates(patch, kill)
        METHODS[name]().finetune(task_for(work=tmp_path))
    for left in (list(range(kill[0], 9)), []):
        with monkeypatch.context() as patch:
            steps = updates(patch)
            assert_same(METHODS[name]().finetune(task_for(work=tmp_path)), expected)
            assert steps == left


@every_method
def test_without_a_text_tower_each_says_so(name: str) -> None:
    """Source: `Task.text_tower`."""
    with pytest.raises(ConfigError, match="no text tower"):
        METHODS[name]().finetune(tiny_task())


@pytest.mark.parametrize(
    ("method", "wrong"),
    [(FinetuneLikeYouPretrain, {option: value})
     for option, value in [("lr", 0), ("lr", -1), ("weight_decay", -0.1)]]
    + [(CalibratedRobustFinetuning, {option: value})
       for option, value in [("orthogonality", -0.1), ("distillation", -0.1),
                             ("alignment", -0.1), ("decay", (-0.1, 0.9)), ("decay", (0.05, 1.1)),
                             ("decay", (0.9,)), ("every", 0), ("lr", 0), ("lr", -1),
                             ("weight_decay", -0.1)]]
    + [(LipsumFineTuning, {option: value})
       for option, value in [("lambda_", -0.1), ("texts", 0), ("length", 0)]]
    + [(ContextAwareFineTuning, {"lambda_": -0.1})]
    + [(GeneralizingClip, {option: value})
       for option, value in [("lambda_", -0.1), ("beta", 0), ("lr", 0), ("weight_decay", -0.1)]],
)  # fmt: skip
def test_wrong_options_are_told(method: Any, wrong: dict[str, float]) -> None:
    """Source: weights and decays are not negative, an average's decay is a share, and so on."""
    with pytest.raises(ConfigError, match=r"^(flyp|carot|lipsum-ft|car-ft|clipood): expected"):
        method(**wrong)


# FLYP


@both_towers
def test_both_towers_train_and_the_head_is_the_trained_text_towers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: the head's formula in numpy: scaled means of a class's normalised prompts."""
    pretrained, text = tiny_clip()
    seen: list[TwoTowers] = []
    original = TwoTowers.classifier
    monkeypatch.setattr(TwoTowers, "classifier", lambda self: seen.append(self) or original(self))
    result = METHODS[name]().finetune(task_for())
    [towers] = seen
    assert differing(towers.text.state_dict(), text.state_dict()) == set(text.state_dict())
    assert differing(result.encoder.state_dict(), pretrained.encoder.state_dict()) == set(
        pretrained.encoder.state_dict()
    )
    trained: Any = towers.text
    words, out = trained.words.weight.detach().numpy(), trained.out.weight.detach().numpy()
    for k in range(10):
        prompts = np.stack([words[k], (words[19] + 3 * words[k]) / 4]) @ out.T
        mean = (prompts / np.linalg.norm(prompts, axis=1, keepdims=True)).mean(0)
        row = np.exp(trained.logit_scale.item()) * mean / np.linalg.norm(mean)
        np.testing.assert_allclose(result.head.weight[k].detach(), row, rtol=1e-4, atol=1e-5)


def test_flyp_is_adamw_on_the_contrastive_loss() -> None:
    """Source: the loop written out in plain torch; one batch holds all, one prompt a class."""
    pretrained, _ = tiny_clip()
    task = task_for(text=OneCaption(), **WHOLE)
    encoder, text, batch = copy.deepcopy(pretrained.encoder), OneCaption(), whole_batch(task)
    tokens = text.tokens([f"19 {label}" for label in batch.labels.tolist()])
    other = (batch.labels[:, None] != batch.labels[None, :]) | torch.eye(24, dtype=torch.bool)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *text.parameters()], 0.01,
                                  weight_decay=0.3)  # fmt: skip
    losses = []
    for _ in range(3):
        cosines = encoder(batch.images) @ F.normalize(text.out(text.words(tokens).mean(1)), dim=1).T
        odds = (text.logit_scale.exp() * cosines).exp() * other
        own = odds.diagonal()
        loss = -((own / odds.sum(1)).log() + (own / odds.sum(0)).log()).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    expected = Classifier(encoder, text.head(), pretrained.preprocess)
    result = FinetuneLikeYouPretrain(lr=0.01, weight_decay=0.3).finetune(task)
    torch.testing.assert_close(result.state_dict(), expected.state_dict(), rtol=1e-3, atol=1e-4)
    assert losses[2] < losses[1] < losses[0]


# CaRot


#: What the authors' code gives; see make_authors.py.
AUTHORS = json.loads(Path(__file__).with_name("authors.json").read_text())["carot"]


def test_its_terms_are_the_authors() -> None:
    """Source: authors.json."""
    image, now, before = (torch.tensor(AUTHORS[name]) for name in ("image", "now", "before"))
    assert unorthogonal(image).item() == pytest.approx(AUTHORS["l_orth_wv"], rel=1e-6)
    both = divergence(now, before) + divergence(now.T, before.T)
    assert both.item() == pytest.approx(AUTHORS["distillation"], rel=1e-5)


def test_its_teachers_momentum_is_the_authors() -> None:
    """Source: authors.json; every 500 updates by default."""
    warmup = 0.2 * AUTHORS["updates"]
    model = TwoTowers(*tiny_clip())
    teacher = carot.Teacher(model, CalibratedRobustFinetuning.decay, 500, warmup)
    for update, momentum in AUTHORS["momenta"].items():
        assert teacher.momentum(int(update)) == pytest.approx(momentum, rel=1e-12)
    assert CalibratedRobustFinetuning().every == 500


def test_unorthogonal_is_the_frobenius_norm() -> None:
    """Source: numpy; 0 for orthonormal columns."""
    tall = np.random.default_rng(0).normal(size=(7, 4))
    expected = np.linalg.norm(tall.T @ tall - np.eye(4))
    assert unorthogonal(torch.tensor(tall, dtype=torch.float32)).item() == pytest.approx(expected)
    columns = torch.tensor(np.linalg.qr(tall)[0])
    assert unorthogonal(columns).item() == pytest.approx(0, abs=1e-10)


def test_divergence_is_kl_of_the_teachers_rows() -> None:
    """Source: numpy; the teacher's comes first, and it is not symmetric."""
    now, before = (3 * np.random.default_rng(seed).normal(size=(5, 4)) for seed in (0, 1))
    got = divergence(torch.tensor(now), torch.tensor(before)).item()
    assert got == pytest.approx(kl(before, now))
    assert kl(before, now) != pytest.approx(kl(now, before), rel=0.01)
    assert divergence(torch.tensor(now), torch.tensor(now)).item() == pytest.approx(0, abs=1e-12)


def test_carots_loss_is_its_four_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: numpy. The teacher is the pretrained model until the first step."""
    task = task_for(text=OneCaption())
    method = CalibratedRobustFinetuning(orthogonality=0.3, alignment=0.2, distillation=0.7)
    model, loss, rest = fit_of(method, task, monkeypatch)
    assert rest["after_step"] == rest["state"]["teacher"].follow
    batch, start = whole_batch(task), TwoTowers(task.pretrained.copy(), OneCaption())
    shaken(model)
    tokens = start.text.tokens([f"19 {label}" for label in batch.labels.tolist()])
    with torch.no_grad():
        now, before = (
            one.similarities(batch.images, tokens).double().numpy() for one in (model, start)
        )
    weight = model.encoder[3].proj.detach().double().numpy()
    words = model.text.out.weight.detach().double().numpy()
    expected = (
        contrastive_by_hand(now, batch.labels.tolist())
        + 0.3 * np.linalg.norm(weight.T @ weight - np.eye(weight.shape[1]))
        + 0.2 * np.linalg.norm(weight @ words)
        + 0.7 * (kl(before, now) + kl(before.T, now.T))
    )
    value = loss(model, batch)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    teacher = rest["state"]["teacher"].model
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(p.grad is not None for p in [*model.encoder.parameters(), *model.text.parameters()])


def test_without_its_terms_carot_is_flyp_to_the_bit() -> None:
    """Source: flyp."""
    off = CalibratedRobustFinetuning(
        orthogonality=0, alignment=0, distillation=0, every=1, decay=(0.5, 0.5), lr=0.01
    )
    assert_same(off.finetune(task_for()), METHODS["flyp"]().finetune(task_for()))
    for option in ("orthogonality", "alignment", "distillation"):
        on = CalibratedRobustFinetuning(**{**vars(off), option: 1.0})
        result = on.finetune(task_for())
        assert differing(result.state_dict(), off.finetune(task_for()).state_dict())


class Watched(carot.Teacher):
    """Keeps itself, its start, and what it followed."""

    made: list["Watched"] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.start, self.path = state_of(self.model), list[dict[str, Tensor]]()
        self.made.append(self)

    def follow(self) -> None:
        super().follow()
        self.path.append(state_of(self.of))


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """The teachers of this test's runs."""
    Watched.made.clear()
    monkeypatch.setattr(carot, "Teacher", Watched)
    return Watched.made


@pytest.mark.parametrize("every", [1, 4, 500])
@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_the_teacher_is_a_moving_average_from_the_pretrained_model(
    decay: float, every: int, teachers: list[Watched]
) -> None:
    """Source: the recursion in numpy, over the weights after each of the nine steps."""
    method = CalibratedRobustFinetuning(decay=(decay, decay), every=every, lr=0.01)
    method.finetune(task_for())
    [teacher] = teachers
    pretrained = TwoTowers(*tiny_clip())
    assert differing(teacher.start, pretrained.state_dict()) == set()
    assert len(teacher.path) == 9
    for name, tensor in teacher.model.state_dict().items():
        expected = pretrained.state_dict()[name].double().numpy()
        for now in teacher.path[::every]:
            expected = decay * expected + (1 - decay) * now[name].double().numpy()
        np.testing.assert_allclose(tensor, expected, rtol=1e-5, atol=1e-6)
    assert not teacher.model.training


def test_the_teacher_survives_a_kill(
    teachers: list[Watched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: the teacher of a run without an interruption."""
    METHODS["carot"]().finetune(task_for())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        updates(patch, (5, "before"))
        METHODS["carot"]().finetune(task_for(work=tmp_path))
    METHODS["carot"]().finetune(task_for(work=tmp_path))
    whole, _, resumed = teachers
    assert len(resumed.path) == 4
    assert_same(resumed.model, whole.model)


# Lipsum-FT


def test_the_penalty_of_lipsum_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: loops in numpy over images and texts."""
    task = task_for(text=OneCaption(), images=tiny_images(classes=3, class_map=SEVERAL))
    model, loss, _ = fit_of(LipsumFineTuning(lambda_=0.3, texts=5), task, monkeypatch)
    shaken(model)
    batch, text = whole_batch(task), OneCaption()
    with torch.no_grad():
        words = text(text.random_tokens(5, 8, torch.Generator())).double().numpy()
        old, new = (one.features(batch.images).double().numpy() for one in (task.pretrained, model))
        logits = model(batch.images).double().numpy()
    total, scale = 0.0, np.exp(2.0)
    for i, label in enumerate(batch.labels.tolist()):
        gaps = [scale * (new[i] @ word - old[i] @ word) for word in words]
        classes = [np.exp(logits[i, list(ids)]).sum() for ids in SEVERAL]
        total += -np.log(classes[label] / sum(classes)) + 0.3 / (2 * 5) * np.sum(np.square(gaps))
    value = loss(model, batch)
    assert value.item() == pytest.approx(total / len(batch), rel=1e-5)
    value.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_without_its_penalty_lipsum_is_plain_fine_tuning_to_the_bit() -> None:
    """Source: ft."""
    expected = FineTuning().finetune(task_for())
    assert_same(LipsumFineTuning(lambda_=0).finetune(task_for()), expected)
    kept = LipsumFineTuning(texts=5).finetune(task_for())
    assert differing(kept.state_dict(), expected.state_dict()) == set(expected.state_dict())


def test_the_text_tower_of_lipsum_is_frozen_and_the_texts_are_anew_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Source: the given tower; the tokens that the loop asks for."""
    towers, drawn = [], []
    original = Task.text_tower

    def text_tower(self: Task) -> Any:
        towers.append(original(self))
        return towers[-1]

    class Spying(TinyTextTower):
        def random_tokens(self, count: int, length: int, generator: torch.Generator) -> Tensor:
            assert (count, length) == (5, 3)
            drawn.append(super().random_tokens(count, length, generator))
            return drawn[-1]

    monkeypatch.setattr(Task, "text_tower", text_tower)
    LipsumFineTuning(texts=5, length=3).finetune(task_for(text=Spying()))
    [tower] = towers
    assert_same(tower, TinyTextTower())
    assert not tower.training
    assert not any(p.requires_grad or p.grad is not None for p in tower.parameters())
    assert len({str(tokens.tolist()) for tokens in drawn}) == len(drawn) == 9


# CAR-FT


def contexts_by_hand(text: Any, ids: list[int]) -> np.ndarray:
    """Rows of the word alone and of it behind word 19: means over classes, of length 1."""
    words, out = (w.detach().double().numpy() for w in (text.words.weight, text.out.weight))
    rows = []
    for prompt in (lambda k: words[k], lambda k: (words[19] + 3 * words[k]) / 4):
        all_of_it = np.stack([prompt(k) @ out.T for k in ids])
        all_of_it /= np.linalg.norm(all_of_it, axis=1, keepdims=True)
        rows.append(all_of_it.mean(0))
    made = np.stack(rows)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_the_penalty_of_car_ft_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: numpy, from the toy's words on: contexts of the set's own ids, softmax, KL."""
    task = task_for(images=tiny_images(classes=3, class_map=SEVERAL))
    model, loss, _ = fit_of(ContextAwareFineTuning(lambda_=0.3), task, monkeypatch)
    shaken(model)
    batch, text = whole_batch(task), TinyTextTower()
    words = contexts_by_hand(text, [0, 1, 3, 5, 7, 9])
    np.testing.assert_allclose(contexts(task, text), words, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        old, new = (one.features(batch.images).double().numpy() for one in (task.pretrained, model))
        logits = model(batch.images).double().numpy()
    learned = 0.0
    for i, label in enumerate(batch.labels.tolist()):
        classes = [np.exp(logits[i, list(ids)]).sum() for ids in SEVERAL]
        learned -= np.log(classes[label] / sum(classes)) / len(batch)
    penalty = kl(np.exp(2.0) * old @ words.T, np.exp(2.0) * new @ words.T)
    assert penalty > 1e-3
    value = loss(model, batch)
    assert value.item() == pytest.approx(learned + 0.3 * penalty, rel=1e-5)
    value.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_without_its_penalty_car_ft_is_plain_fine_tuning() -> None:
    """Source: ft; the penalty changes every weight of the image tower, and no text."""
    expected = FineTuning().finetune(task_for())
    off = ContextAwareFineTuning(lambda_=0).finetune(task_for())
    torch.testing.assert_close(off.state_dict(), expected.state_dict())
    on = ContextAwareFineTuning(lambda_=5).finetune(task_for())
    assert differing(on.state_dict(), expected.state_dict()) == set(expected.state_dict())


def test_a_single_template_has_no_contexts() -> None:
    """Source: the softmax of one number is 1."""
    with pytest.raises(ConfigError, match="one template only"):
        ContextAwareFineTuning().finetune(task_for(text=OneCaption()))


# CLIPood

#: What the authors' code gives; see make_clipood_dawin_twins.py.
CLIPOOD = json.loads(Path(__file__).with_name("clipood_dawin_twins.json").read_text())["clipood"]


class Fixed(nn.Module):
    """An encoder whose features are those that it is given."""

    def __init__(self, features: Tensor):
        super().__init__()
        self.rows = nn.Parameter(features)

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.rows[: len(images)], dim=1)


def test_the_loss_of_clipood_is_the_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: clipood_dawin_twins.json."""
    features, text = torch.tensor(CLIPOOD["features"]), torch.tensor(CLIPOOD["text"])
    tower = TinyTextTower(4)
    tower.logit_scale.data.fill_(np.log(20.0))
    head = nn.Linear(6, 4, bias=False)
    head.weight.data = 20 * text
    pretrained = Classifier(Fixed(features), head, tiny_clip()[0].preprocess)
    task = task_for(pretrained=pretrained, text=tower, images=tiny_images(7, classes=4))
    torch.testing.assert_close(class_texts(task, pretrained, tower), text)
    model, loss, _ = fit_of(GeneralizingClip(), task, monkeypatch)
    batch = Batch(torch.zeros(7, 3, 8, 8), torch.tensor(CLIPOOD["labels"]), torch.arange(7))
    assert loss(model, batch).item() == pytest.approx(CLIPOOD["loss"], rel=1e-5)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_average_of_clipood_is_the_authors(beta: float) -> None:
    """Source: clipood_dawin_twins.json; a weight that takes the recorded values."""
    path = torch.tensor(CLIPOOD["path"])
    model: Any = nn.Linear(3, 1, bias=False)
    model.weight.data = path[:1].clone()
    average = BetaAverage(model, beta, len(path) - 1)
    for row in path[1:]:
        model.weight.data = row[None].clone()
        average.follow()
    average.write()
    expected = torch.tensor([CLIPOOD["averages"][str(beta)]])
    torch.testing.assert_close(model.weight.data, expected)


def test_clipood_is_adamw_on_its_loss_and_gives_the_average() -> None:
    """Source: the loop written out in plain torch, with scipy's density; several ids a class."""
    from scipy.stats import beta as density

    pretrained, text = tiny_clip()
    images = tiny_images(classes=3, class_map=SEVERAL)
    task = task_for(images=images, **WHOLE)
    model, batch = pretrained.copy(), whole_batch(task)
    rows = pretrained.head.weight.detach() / np.exp(2.0)
    texts = torch.stack([F.normalize(rows[list(ids)].sum(0), dim=0) for ids in SEVERAL])
    optimizer = torch.optim.AdamW(model.encoder.parameters(), 0.01, weight_decay=0.3)
    path = [state_of(model)]
    for _ in range(3):
        cosines = (model.features(batch.images) - 0.4 * texts[batch.labels]) @ rows.T
        odds = (np.exp(2.0) * cosines).exp()
        own = torch.stack([odds[:, list(ids)].sum(1) for ids in SEVERAL], 1)
        loss = -(own[range(24), batch.labels] / own.sum(1)).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        path.append(state_of(model))
    weights = density.pdf((np.arange(4) + 0.5) / 4, 0.5, 0.5)
    expected = {name: sum(float(w) * one[name] for w, one in zip(weights, path, strict=True))
                / float(weights.sum()) for name in path[0]}  # fmt: skip
    result = GeneralizingClip(lambda_=0.4, lr=0.01, weight_decay=0.3).finetune(task)
    torch.testing.assert_close(dict(result.state_dict()), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(result.head.weight, pretrained.head.weight)
    assert all(p.requires_grad for p in result.parameters())
    assert differing(text.state_dict(), TinyTextTower().state_dict()) == set()


def test_clipood_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: a run without an interruption, to the bit, its average too."""
    method = GeneralizingClip(lr=0.01)
    expected = method.finetune(task_for())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        updates(patch, (5, "before"))
        method.finetune(task_for(work=tmp_path))
    for _ in range(2):
        assert_same(method.finetune(task_for(work=tmp_path)), expected)
