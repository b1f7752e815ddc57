"""The methods of the first version: what all of them promise, and what each computes.

Expected values come from closed forms in numpy, from loops written out in plain torch, or from
`torch.distributions`; each test says from which.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rib_plugin_cl_methods.anchor import snapshot, squared_distance
from rib_plugin_cl_methods.averaging import weighted_mean
from rib_plugin_cl_methods.ewc import ElasticWeightConsolidation, normalised
from rib_plugin_cl_methods.ft import FineTuning
from rib_plugin_cl_methods.l2_sp import L2SP
from rib_plugin_cl_methods.lp import LinearProbing
from rib_plugin_cl_methods.lp_ft import LinearProbingFineTuning
from rib_plugin_cl_methods.lwf import LearningWithoutForgetting
from rib_plugin_cl_methods.soup import UniformSoup
from rib_plugin_cl_methods.wise_ft import WiseFT
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from rib_harness import Classifier, ConfigError, ImageSet, Task, load_catalog, members_of
from rib_harness.engine.fit import _Fit
from rib_harness.testing import TINY, tiny_classifier, tiny_images, tiny_task

METHODS: dict[str, Any] = {
    "ft": FineTuning,
    "lp": LinearProbing,
    "lp-ft": LinearProbingFineTuning,
    "l2-sp": L2SP,
    "ewc": ElasticWeightConsolidation,
    "lwf": LearningWithoutForgetting,
    "wise-ft": WiseFT,
    "soup": UniformSoup,
}
TRAINING = ("ft", "lp", "lp-ft", "l2-sp", "ewc", "lwf")
NEEDS = {"lp-ft": ("lp",), "wise-ft": ("ft",), "soup": ("ft", "ewc", "lwf")}

every_method = pytest.mark.parametrize("name", METHODS)
every_training_method = pytest.mark.parametrize("name", TRAINING)
both_nets = pytest.mark.parametrize("batchnorm", [True, False], ids=["batchnorm", "plain"])

#: One batch holds the whole set and nothing about a step is random: easy to write out by hand.
WHOLE: dict[str, Any] = {"batch_size": 24, "momentum": 0.0, "schedule": "constant"}


def task_for(name: str, batchnorm: bool = True, **arguments: Any) -> Task:
    """A tiny task with the checkpoints that the method of that name needs."""
    needs = {need: made(need, batchnorm) for need in NEEDS.get(name, ())}
    return tiny_task(
        pretrained=tiny_classifier(batchnorm=batchnorm),
        checkpoints=needs,
        methods={"ft": FineTuning()},
        **arguments,
    )


@cache
def made(name: str, batchnorm: bool = True) -> Classifier:
    """What a method makes of the tiny task; the tests copy it or only read it."""
    return METHODS[name]().finetune(task_for(name, batchnorm))


def assert_same(left: nn.Module, right: nn.Module) -> None:
    """All parameters and buffers are equal to the bit."""
    assert differing(left, right) == []


def assert_near(left: nn.Module, right: nn.Module, **tolerance: float) -> None:
    torch.testing.assert_close(left.state_dict(), right.state_dict(), **tolerance)


def differing(left: nn.Module, right: nn.Module) -> list[str]:
    ours, theirs = left.state_dict(), right.state_dict()
    assert list(ours) == list(theirs)
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def inputs_of(images: ImageSet) -> Tensor:
    """The set as a model's input, (N, 3, 8, 8), from the pictures and without the engine."""
    pictures = np.stack([np.asarray(images.image(i)) for i in range(len(images))])
    normal = (pictures / 255 - np.array(TINY.mean)) / np.array(TINY.std)
    return torch.tensor(normal.transpose(0, 3, 1, 2), dtype=torch.float32)


def loss_on(task: Task, model: Classifier) -> float:
    with torch.no_grad():
        logits = model.eval()(inputs_of(task.images))
    return F.cross_entropy(logits, torch.tensor(task.images.labels)).item()


def numpy_mean(models: Sequence[Classifier], weights: Sequence[float]) -> dict[str, Tensor]:
    """Σ w θ of everything with a decimal point, in numpy and float64."""
    states = [model.state_dict() for model in models]
    return {
        name: torch.tensor(
            sum(w * s[name].double().numpy() for w, s in zip(weights, states, strict=True)),
            dtype=torch.float32,
        )
        for name, tensor in states[0].items()
        if tensor.is_floating_point()
    }


def parameters_of(model: Classifier) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


# What all of them promise


def test_each_can_be_built_and_says_what_it_needs() -> None:
    """Source: the tables at the top of this file."""
    catalog = load_catalog()
    for component in [catalog.get("method", name) for name in METHODS]:
        bound = catalog.bind("method", component.id)
        assert type(bound.build()) is METHODS[component.spec.name]
        texts = [t.format_map(bound.options).removeprefix("*") for t in component.spec.needs]
        needs = {one for text in texts for one in members_of(text)} - {"pretrained"}
        assert needs == set(NEEDS.get(component.spec.name, ()))


def test_the_paper_preset_is_identity_fisher_and_distillation_over_the_task() -> None:
    """Source: the protocol's reference code, as the spec notes it."""
    catalog = load_catalog()
    ewc = catalog.bind("method", "ewc", "paper").build()
    assert ewc == ElasticWeightConsolidation(fisher="identity", lambda_=2.0)
    lwf = catalog.bind("method", "lwf", "paper").build()
    assert lwf == LearningWithoutForgetting(over="task")


@both_nets
@every_method
def test_the_same_seed_gives_the_same_weights(name: str, batchnorm: bool) -> None:
    """Source: a second run, with the global random state elsewhere."""
    expected = made(name, batchnorm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert_same(METHODS[name]().finetune(task_for(name, batchnorm)), expected)


@every_training_method
def test_another_seed_gives_other_weights(name: str) -> None:
    """Source: a run with another order of images; else the test above would show nothing."""
    assert differing(METHODS[name]().finetune(task_for(name, seed=1)), made(name))


@both_nets
@every_method
def test_the_pretrained_classifier_and_the_checkpoints_stay_untouched(
    name: str, batchnorm: bool
) -> None:
    """Source: fingerprints from before."""
    task = task_for(name, batchnorm)
    given = [task.pretrained, *task.checkpoints.values()]
    before = [classifier.fingerprint() for classifier in given]
    result = METHODS[name]().finetune(task)
    assert [classifier.fingerprint() for classifier in given] == before
    assert not result.training
    memory = {tensor.data_ptr() for one in given for tensor in one.state_dict().values()}
    assert not memory & {tensor.data_ptr() for tensor in result.state_dict().values()}


@both_nets
@every_method
def test_the_result_saves_and_loads_exactly(name: str, batchnorm: bool, tmp_path: Path) -> None:
    """Source: the weights in memory, against a net that began with others."""
    result = made(name, batchnorm)
    result.save(tmp_path / "model.safetensors")
    other = tiny_classifier(batchnorm=batchnorm, seed=5)
    assert differing(other, result)
    assert_same(other.load(tmp_path / "model.safetensors"), result)
    assert other.fingerprint() == result.fingerprint()


@both_nets
@every_training_method
def test_the_fine_tuning_set_is_learned(name: str, batchnorm: bool) -> None:
    """Source: cross-entropy on the whole set in plain torch, in eval mode."""
    task = task_for(name, batchnorm)
    assert loss_on(task, made(name, batchnorm)) < loss_on(task, task.pretrained) - 0.01


@every_method
def test_what_is_trained_is_what_changes(name: str) -> None:
    """Source: the names of the parameters, on the net where every one has a gradient."""
    result = made(name, batchnorm=False)
    head = ["head.weight", "head.bias"]
    names = head if name == "lp" else [name for name, _ in result.named_parameters()]
    assert differing(result, tiny_classifier(batchnorm=False)) == names


# Neutral settings


@both_nets
@pytest.mark.parametrize(
    "method",
    [LearningWithoutForgetting(alpha=0), L2SP(alpha=0), ElasticWeightConsolidation(lambda_=0)],
    ids=["lwf", "l2-sp", "ewc"],
)
def test_without_its_penalty_a_method_is_plain_fine_tuning(method: Any, batchnorm: bool) -> None:
    """Source: `ft`, to the bit."""
    assert_same(method.finetune(task_for("ft", batchnorm)), made("ft", batchnorm))


@pytest.mark.parametrize("name", ["l2-sp", "ewc", "lwf"])
def test_with_its_penalty_it_is_not(name: str) -> None:
    """Source: `ft`; else the test above would show nothing."""
    assert differing(made(name), made("ft"))


@both_nets
@pytest.mark.parametrize("name", ["ft", "lp", "l2-sp", "ewc", "lwf"])
def test_no_epochs_give_the_pretrained_classifier(name: str, batchnorm: bool) -> None:
    """Source: the pretrained classifier."""
    task = task_for(name, batchnorm, epochs=0)
    assert_same(METHODS[name]().finetune(task), task.pretrained)


@both_nets
def test_wise_ft_at_0_is_the_pretrained_classifier(batchnorm: bool) -> None:
    """Source: the pretrained classifier, batch-norm statistics included."""
    task = task_for("wise-ft", batchnorm)
    assert_same(WiseFT(alpha=0).finetune(task), task.pretrained)


@both_nets
def test_wise_ft_at_1_is_the_fine_tuned_classifier(batchnorm: bool) -> None:
    """Source: the base's checkpoint, batch-norm statistics included."""
    task = task_for("wise-ft", batchnorm)
    changed = differing(WiseFT(alpha=1).finetune(task), made("ft", batchnorm))
    counters = [name for name in changed if name.endswith("num_batches_tracked")]
    assert changed == counters  # these are for the next test


def test_wise_ft_at_1_is_the_fine_tuned_classifier_with_its_counters() -> None:
    """Source: the base's fingerprint."""
    result = WiseFT(alpha=1).finetune(task_for("wise-ft"))
    assert result.fingerprint() == made("ft").fingerprint()


@both_nets
@pytest.mark.parametrize("member", ["pretrained", "ft"])
def test_a_soup_of_one_is_that_one(member: str, batchnorm: bool) -> None:
    """Source: the member, batch-norm statistics included."""
    task = task_for("soup", batchnorm)
    expected = task.pretrained if member == "pretrained" else made(member, batchnorm)
    assert_same(UniformSoup(members=member).finetune(task), expected)


# lp, lp-ft


@pytest.mark.parametrize("features", ["once", "every-step"])
def test_lp_changes_the_head_and_no_statistics(features: Any) -> None:
    """Source: the pretrained encoder, its batch-norm buffers included."""
    task = task_for("lp")
    result = LinearProbing(features=features).finetune(task)
    assert_same(result.encoder, task.pretrained.encoder)
    assert differing(result, task.pretrained) == ["head.weight", "head.bias"]


@both_nets
def test_lp_on_features_computed_once_is_lp_on_features_of_each_step(batchnorm: bool) -> None:
    """Source: the other way round; batch-norm and dropout would show in it if they acted."""
    slow = LinearProbing(features="every-step").finetune(task_for("lp", batchnorm))
    assert_near(made("lp", batchnorm), slow, atol=1e-5, rtol=1e-5)


def test_lp_computes_features_at_each_step_where_the_images_are_augmented() -> None:
    """Source: `features="every-step"`, to the bit."""
    arguments = {"images": tiny_images(), "augment": "flip"}
    once = LinearProbing(features="once").finetune(task_for("lp", **arguments))
    each = LinearProbing(features="every-step").finetune(task_for("lp", **arguments))
    assert_same(once, each)
    assert differing(once, made("lp"))


@pytest.mark.parametrize("features", ["once", "every-step"])
def test_lp_has_a_learning_rate_of_its_own(features: Any) -> None:
    """Source: `lp` under a recipe with that rate."""
    own = LinearProbing(lr=0.2, features=features).finetune(task_for("lp"))
    recipe = LinearProbing(features=features).finetune(task_for("lp", lr=0.2))
    assert_same(own, recipe)
    assert differing(own, made("lp"))


def test_lp_is_logistic_regression_on_the_features() -> None:
    """Source: the gradient (p − y) φᵀ of softmax regression, two steps in numpy."""
    task = task_for("lp", **WHOLE, epochs=2)
    with torch.no_grad():
        phi = task.pretrained.features(inputs_of(task.images)).double().numpy()
    y = np.eye(10)[task.images.labels]
    w, b = (t.double().numpy().copy() for t in task.pretrained.head.state_dict().values())
    for _ in range(2):
        p = np.exp(phi @ w.T + b)
        error = (p / p.sum(1, keepdims=True) - y) / len(y)
        w, b = w - 0.05 * error.T @ phi, b - 0.05 * error.sum(0)
    head = LinearProbing().finetune(task).head.state_dict()
    np.testing.assert_allclose(head["weight"], w, atol=1e-5)
    np.testing.assert_allclose(head["bias"], b, atol=1e-5)


@both_nets
def test_lp_ft_without_epochs_is_lp(batchnorm: bool) -> None:
    """Source: the checkpoint of `lp`."""
    result = LinearProbingFineTuning().finetune(task_for("lp-ft", batchnorm, epochs=0))
    assert_same(result, made("lp", batchnorm))


@both_nets
def test_lp_ft_is_fine_tuning_from_lp_at_the_same_rate(batchnorm: bool) -> None:
    """Source: `ft` of a classifier that `lp` made, under the same recipe."""
    from_lp = tiny_task(pretrained=made("lp", batchnorm).copy().eval())
    assert_same(made("lp-ft", batchnorm), FineTuning().finetune(from_lp))
    changed = differing(made("lp-ft", batchnorm), made("lp", batchnorm))
    assert any(name.startswith("encoder.") for name in changed)


@pytest.mark.parametrize("name", ["lp-ft", "wise-ft", "soup"])
def test_a_checkpoint_that_was_not_declared_is_named(name: str) -> None:
    """Source: the reference that the method asks for first."""
    with pytest.raises(ConfigError, match=f"no checkpoint of '{NEEDS[name][0]}'"):
        METHODS[name]().finetune(tiny_task())


# l2-sp, ewc


def by_hand(
    task: Task,
    steps: int,
    pull: float = 0.0,
    weight: Mapping[str, Tensor] | None = None,
    distil: float = 0.0,
) -> Classifier:
    """SGD written out, on the whole set at once and a net without batch-norm and dropout.

    Args:
        pull: times (θ − θ₀), times `weight`, is added to the gradient of the cross-entropy.
        distil: times the KL divergence of the old softmax(z/2) to the new one is added to it.
    """
    x, y = inputs_of(task.images), torch.tensor(task.images.labels)
    model, start = task.pretrained.copy(), parameters_of(task.pretrained.copy())
    old = Categorical(logits=task.pretrained(x).detach() / 2)
    for _ in range(steps):
        z = model(x)
        loss = F.cross_entropy(z, y) + distil * kl_divergence(old, Categorical(logits=z / 2)).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
                scale = 1.0 if weight is None else weight[name]
                p -= 0.05 * (gradient + pull * scale * (p - start[name]))
    return model


ANCHORED = [
    pytest.param(L2SP(alpha=6.0), 6.0, id="l2-sp"),
    pytest.param(ElasticWeightConsolidation(6.0, "identity"), 6.0, id="ewc-identity"),
    # The gradient of the paper's penalty Σ(θ − θ₀)² is 2 (θ − θ₀).
    pytest.param(ElasticWeightConsolidation(2.0, "identity"), 2.0, id="ewc-paper"),
]


@pytest.mark.parametrize(("method", "pull"), ANCHORED)
def test_at_the_first_step_the_anchor_does_not_pull(method: Any, pull: float) -> None:
    """Source: `ft`, to the bit: the gradient of Σ(θ − θ₀)² is 0 at θ₀."""
    first = method.finetune(task_for("ft", batchnorm=False, **WHOLE, epochs=1))
    assert_same(first, FineTuning().finetune(task_for("ft", batchnorm=False, **WHOLE, epochs=1)))


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize(("method", "pull"), ANCHORED)
def test_the_anchor_pulls_in_proportion_to_the_distance(
    method: Any, pull: float, steps: int
) -> None:
    """Source: SGD written out, with pull · (θ − θ₀) added to the gradient."""
    task = task_for("ft", batchnorm=False, **WHOLE, epochs=steps)
    result = method.finetune(task)
    assert_near(result, by_hand(task, steps, pull), atol=1e-6, rtol=1e-5)
    with pytest.raises(AssertionError):  # the tolerance sees a pull twice as strong
        assert_near(result, by_hand(task, steps, 2 * pull), atol=1e-6, rtol=1e-5)


def test_ewc_pulls_in_proportion_to_importance_too() -> None:
    """Source: SGD written out, with λ F (θ − θ₀) added to the gradient, F over its mean."""
    task = task_for("ewc", batchnorm=False, **WHOLE, epochs=3)
    ewc = ElasticWeightConsolidation(lambda_=3.0)
    raw = ewc.importance(task)
    mean = np.concatenate([value.numpy().ravel() for value in raw.values()]).mean()
    weight = {name: value / float(mean) for name, value in raw.items()}
    expected = by_hand(task, 3, 3.0, weight)
    assert_near(ewc.finetune(task), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(AssertionError):  # the tolerance sees an importance of 1
        assert_near(expected, by_hand(task, 3, 3.0), atol=1e-6, rtol=1e-5)


def test_squared_distance_is_the_weighted_sum_of_squares() -> None:
    """Source: numpy, in float64."""
    model = tiny_classifier()
    start = snapshot(model)
    assert squared_distance(model, start).item() == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    weight = {name: torch.full_like(value, i) for i, (name, value) in enumerate(start.items())}
    squares = [
        ((p.detach().double() - start[name].double()).numpy() ** 2).sum()
        for name, p in model.named_parameters()
    ]
    assert squared_distance(model, start).item() == pytest.approx(sum(squares), rel=1e-5)
    weighted = sum(i * square for i, square in enumerate(squares))
    assert squared_distance(model, start, weight).item() == pytest.approx(weighted, rel=1e-5)


def linear_task(n: int = 24, classes: int = 10, sharp: float = 1.0, **arguments: Any) -> Task:
    """Softmax regression on pixels, whose gradients are known in closed form."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Classifier(nn.Flatten(), nn.Linear(192, classes), TINY).eval()
    with torch.no_grad():
        model.head.weight *= sharp
    return tiny_task(images=tiny_images(n=n, classes=classes), pretrained=model, **arguments)


def log_p_gradients(task: Task, labels: Tensor, order: Tensor) -> tuple[Any, Any]:
    """∂ log p_y / ∂W = (e_y − p) xᵀ and ∂ log p_y / ∂b = e_y − p for each image, in numpy."""
    x = inputs_of(task.images).flatten(1)[order].double().numpy()
    w, b = (t.double().numpy() for t in task.pretrained.head.state_dict().values())
    p = np.exp(x @ w.T + b)
    error = np.eye(len(b))[labels.numpy()] - p / p.sum(1, keepdims=True)
    return error[:, :, None] * x[:, None, :], error


@pytest.mark.parametrize("images", [None, 10, 2000], ids=["all", "some", "more-than-there-are"])
def test_importance_is_the_mean_of_squared_gradients_image_by_image(images: int | None) -> None:
    """Source: the closed form for softmax regression, on labels drawn by the same generator."""
    task = linear_task(seed=3)
    generator = task.generator("ewc")
    order = torch.randperm(24, generator=generator)[:images]
    with torch.no_grad():
        p = F.softmax(task.pretrained(inputs_of(task.images)[order]), 1)
    drawn = [torch.multinomial(row, 1, generator=generator) for row in p]
    on_weight, on_bias = log_p_gradients(task, torch.cat(drawn), order)
    fisher = ElasticWeightConsolidation(images=images).importance(task)
    np.testing.assert_allclose(fisher["head.weight"], (on_weight**2).mean(0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(fisher["head.bias"], (on_bias**2).mean(0), rtol=1e-4, atol=1e-7)
    # The bug that other libraries have: the square of the mean instead of the mean of squares.
    wrong = on_weight.mean(0) ** 2
    assert fisher["head.weight"].sum() > 3 * wrong.sum()


def test_importance_tends_to_the_fisher_information() -> None:
    """Source: Σ_y p_y (1[y=k] − p_k)² x² = p_k (1 − p_k) x², which knows no drawn labels.

    A sharp model on labels it never saw: with the true labels F would be several times larger.
    """
    task = linear_task(n=600, classes=3, sharp=4.0)
    x = inputs_of(task.images).flatten(1).double().numpy()
    with torch.no_grad():
        p = F.softmax(task.pretrained(inputs_of(task.images)), 1).double().numpy()
    fisher = ElasticWeightConsolidation(images=None).importance(task)
    np.testing.assert_allclose(fisher["head.bias"], (p * (1 - p)).mean(0), rtol=0.15)
    expected = (p * (1 - p)).T @ x**2 / len(x)
    np.testing.assert_allclose(fisher["head.weight"].sum(1), expected.sum(1), rtol=0.15)
    labels = torch.tensor(task.images.labels)
    _, on_bias = log_p_gradients(task, labels, torch.arange(len(x)))
    assert ((on_bias**2).mean(0) > 1.5 * fisher["head.bias"].numpy()).all()


def test_importance_is_taken_in_eval_mode() -> None:
    """Source: itself; dropout and the statistics of a batch of one would change it."""
    task = task_for("ewc")
    first, second = (ElasticWeightConsolidation().importance(task) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert set(first) == set(parameters_of(task.pretrained))
    assert all((value >= 0).all() and value.sum() > 0 for value in first.values())


def test_normalised_importance_has_mean_one_and_the_same_proportions() -> None:
    """Source: numpy over all values together."""
    raw = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([[10.0, 24.0]])}
    scaled = normalised(raw)
    assert np.concatenate([v.numpy().ravel() for v in scaled.values()]).mean() == pytest.approx(1)
    torch.testing.assert_close(scaled, {name: value / 8 for name, value in raw.items()})
    zero = normalised({"a": torch.zeros(3)})
    assert torch.equal(zero["a"], torch.zeros(3))


# lwf


def logits(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_distillation_equals_its_definition(temperature: float) -> None:
    """Source: Σ q log(q / p) in numpy and float64, and `torch.distributions.kl_divergence`."""
    now, before = logits(6, 10), logits(6, 10, seed=1)
    got = LearningWithoutForgetting(temperature=temperature).distillation(tiny_task(), now, before)
    p, q = (np.exp(z.numpy() / temperature) for z in (now, before))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    assert got.dtype == torch.float64 and got.shape == ()
    np.testing.assert_allclose(got, (q * np.log(q / p)).sum(1).mean(), rtol=1e-12)
    old, new = (Categorical(logits=z / temperature) for z in (before, now))
    torch.testing.assert_close(got, kl_divergence(old, new).mean())


def test_distillation_is_zero_where_nothing_was_forgotten_and_positive_elsewhere() -> None:
    """Source: Gibbs' inequality; logits matter up to a constant only."""
    lwf, task = LearningWithoutForgetting(temperature=3.0), tiny_task()
    for seed in range(5):
        z = logits(4, 10, seed=seed)
        assert abs(lwf.distillation(task, z, z).item()) < 1e-12
        assert abs(lwf.distillation(task, z + 7, z).item()) < 1e-12
        assert lwf.distillation(task, z, logits(4, 10, seed=seed + 100)) > 0


SEVERAL = [(2,), (5, 7), (9,)]


def test_distillation_over_the_task_sees_its_classes_only() -> None:
    """Source: probabilities of the ids of a class added up and renormalised, in numpy.

    That is log-sum-exp before the temperature.
    """
    task = tiny_task(
        images=tiny_images(classes=3, class_map=SEVERAL), pretrained=tiny_classifier(classes=11)
    )
    now, before = logits(5, 11), logits(5, 11, seed=1)
    p, q = (
        np.stack([np.exp(z.numpy())[:, list(ids)].sum(1) for ids in SEVERAL], 1) ** (1 / 2)
        for z in (now, before)
    )
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    got = LearningWithoutForgetting(over="task").distillation(task, now, before)
    np.testing.assert_allclose(got, (q * np.log(q / p)).sum(1).mean(), rtol=1e-10)
    other = now.clone()
    other[:, [0, 1, 3, 4, 6, 8, 10]] += 5
    assert torch.equal(
        LearningWithoutForgetting(over="task").distillation(task, other, before), got
    )
    everything = LearningWithoutForgetting(over="all")
    gap = everything.distillation(task, other, before) - everything.distillation(task, now, before)
    assert gap.abs() > 0.01


@pytest.mark.parametrize("over", ["all", "task"])
def test_lwf_runs_where_a_class_has_several_ids(over: Any) -> None:
    """Source: `ft` for alpha = 0; the loss on the summed probabilities falls, in plain torch."""
    ids = [(0, 10), *((k,) for k in range(1, 10))]

    def task() -> Task:
        return tiny_task(images=tiny_images(class_map=ids), pretrained=tiny_classifier(classes=11))

    def loss(model: Classifier) -> float:
        with torch.no_grad():
            p = F.softmax(model.eval()(inputs_of(tiny_images())), 1)
        summed = torch.stack([p[:, list(one)].sum(1) for one in ids], 1)
        return F.nll_loss(summed.log(), torch.tensor(tiny_images().labels)).item()

    result = LearningWithoutForgetting(over=over).finetune(task())
    assert loss(result) < loss(tiny_classifier(classes=11)) - 0.01
    neutral = LearningWithoutForgetting(alpha=0, over=over).finetune(task())
    assert_same(neutral, FineTuning().finetune(task()))


@pytest.mark.parametrize("alpha", [1.0, 4.0])
def test_lwf_adds_alpha_times_the_divergence_from_the_pretrained_answers(alpha: float) -> None:
    """Source: SGD written out, with the divergence of `torch.distributions`."""
    task = task_for("lwf", batchnorm=False, **WHOLE, epochs=3)
    result = LearningWithoutForgetting(alpha=alpha).finetune(task)
    assert_near(result, by_hand(task, 3, distil=alpha), atol=1e-6, rtol=1e-5)
    with pytest.raises(AssertionError):  # the tolerance sees the T² of other implementations
        assert_near(result, by_hand(task, 3, distil=4 * alpha), atol=1e-6, rtol=1e-5)


def test_lwf_is_the_same_whether_old_answers_are_kept_or_computed_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Source: the other way round; a teacher in train mode would show in it."""
    kept = made("lwf")
    monkeypatch.setattr("rib_harness.engine.task.KEEP_LIMIT", 0)
    each_time = LearningWithoutForgetting().finetune(task_for("lwf"))
    assert_near(each_time, kept, atol=1e-5, rtol=1e-5)


# wise-ft, soup


def batchnorm_statistics(model: Classifier, task: Task, batch_size: int) -> tuple[Any, Any]:
    """Mean and unbiased variance of what comes into batch-norm, averaged over batches: numpy."""
    order = torch.randperm(24, generator=task.generator("batch-norm"))
    with torch.no_grad():
        seen = model.encoder[0](inputs_of(tiny_images())[order]).double().numpy()
    batches = [seen[i : i + batch_size] for i in range(0, len(seen), batch_size)]
    means = [batch.mean((0, 2, 3)) for batch in batches]
    return np.mean(means, 0), np.mean([b.var((0, 2, 3), ddof=1) for b in batches], 0)


@both_nets
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_wise_ft_interpolates(alpha: float, batchnorm: bool) -> None:
    """Source: (1 − α) θ₀ + α θ in numpy; with `average`, statistics too."""
    task = task_for("wise-ft", batchnorm)
    ends, weights = [task.pretrained, made("ft", batchnorm)], [1 - alpha, alpha]
    expected = numpy_mean(ends, weights)
    average = WiseFT(alpha=alpha).finetune(task).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value, rtol=1e-6, atol=1e-7, msg=name)
    recomputed = WiseFT(alpha=alpha, batch_norm="recompute").finetune(task)
    for name, parameter in parameters_of(recomputed).items():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("batch_size", [24, 8])
@pytest.mark.parametrize(
    "method",
    [
        WiseFT(alpha=0.4, batch_norm="recompute"),
        UniformSoup(members="pretrained+ft", batch_norm="recompute"),
    ],
    ids=["wise-ft", "soup"],
)
def test_statistics_that_are_taken_anew_are_those_of_the_averaged_weights(
    method: Any, batch_size: int
) -> None:
    """Source: mean and variance over batches of the convolution's output, in numpy."""
    task = task_for("wise-ft", batch_size=batch_size)
    result = method.finetune(task)
    mean, variance = batchnorm_statistics(result, task, batch_size)
    statistics = result.encoder[1].state_dict()
    np.testing.assert_allclose(statistics["running_mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics["running_var"], variance, rtol=1e-4, atol=1e-6)
    averaged = type(method)(**{**vars(method), "batch_norm": "average"}).finetune(task)
    changed = [name for name in differing(result, averaged) if not name.endswith("tracked")]
    assert changed == ["encoder.1.running_mean", "encoder.1.running_var"]
    assert result.encoder[1].momentum == task.pretrained.encoder[1].momentum


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_wise_ft_refuses_an_alpha_outside_0_to_1(alpha: float) -> None:
    """Source: the value given, which the message repeats."""
    with pytest.raises(ConfigError, match=f"expected alpha in 0 … 1, got {alpha}"):
        WiseFT(alpha=alpha)


def test_wise_ft_starts_from_another_base() -> None:
    """Source: numpy, with the checkpoint under the reference that the option names."""
    task = tiny_task(checkpoints={"lwf:alpha=2.0": made("lwf")})
    result = WiseFT(base="lwf:alpha=2.0").finetune(task)
    expected = numpy_mean([task.pretrained, made("lwf")], [0.5, 0.5])
    torch.testing.assert_close(parameters_of(result), {n: expected[n] for n in snapshot(result)})


@both_nets
@pytest.mark.parametrize(
    "members", ["pretrained+ft+ewc+lwf", "ft+(lwf:alpha=2.0)", "ewc+lwf+pretrained"]
)
def test_a_soup_is_the_mean_of_its_members(members: str, batchnorm: bool) -> None:
    """Source: numpy's mean over the members; with `average`, of statistics too."""
    checkpoints = {name: made(name, batchnorm) for name in ("ft", "ewc", "lwf")}
    checkpoints["lwf:alpha=2.0"] = made("lwf", batchnorm)
    checkpoints["pretrained"] = pretrained = tiny_classifier(batchnorm=batchnorm)
    names = members.replace("(", "").replace(")", "").split("+")
    expected = numpy_mean([checkpoints[name] for name in names], [1 / len(names)] * len(names))
    task = tiny_task(pretrained=pretrained, checkpoints=checkpoints)
    soup = UniformSoup(members=members).finetune(task).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(soup[name], value, rtol=1e-6, atol=1e-7, msg=name)
    recomputed = UniformSoup(members=members, batch_norm="recompute").finetune(task)
    for name, parameter in parameters_of(recomputed).items():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-7, msg=name)


def test_weighted_mean_shares_nothing_with_its_models() -> None:
    """Source: fingerprints from before a change to the mean."""
    models = [tiny_classifier(), made("ft").copy()]
    before = [model.fingerprint() for model in models]
    mean = weighted_mean(models, [0.5, 0.5])
    with torch.no_grad():
        for tensor in mean.state_dict().values():
            tensor.add_(1)
    assert [model.fingerprint() for model in models] == before


def net(*layers: nn.Module, features: int) -> Classifier:
    """A classifier whose layers have weights of seed 0."""
    generator = torch.Generator().manual_seed(0)
    model = Classifier(nn.Sequential(*layers), nn.Linear(features, 10), TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model


def test_statistics_behind_dropout_are_the_same_twice() -> None:
    """Source: a second run on the same task, with the global random state elsewhere."""
    pretrained = net(
        nn.Conv2d(3, 8, 3), nn.Dropout(0.3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), features=32,
    )  # fmt: skip
    tuned = FineTuning().finetune(tiny_task(pretrained=pretrained))
    task = tiny_task(pretrained=pretrained, checkpoints={"ft": tuned})
    anew = WiseFT(batch_norm="recompute")
    assert_same(anew.finetune(task), anew.finetune(task))


def test_statistics_can_be_recomputed_where_one_image_is_left_over() -> None:
    """Source: `ft`, which trains on the same 25 images in batches of 8."""
    pretrained = net(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8),
        features=8,
    )  # fmt: skip
    images = tiny_images(n=25)
    tuned = FineTuning().finetune(tiny_task(pretrained=pretrained, images=images))
    task = tiny_task(pretrained=pretrained, images=images, checkpoints={"ft": tuned})
    assert not WiseFT(batch_norm="recompute").finetune(task).training


# Resuming


def killed_at(step: int, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fit is interrupted at an update, before it or before what it did is on disk."""
    original = _Fit.update

    def update(self: _Fit, batch: Any) -> Any:
        now = self.step
        if now == step and when == "before":
            raise KeyboardInterrupt
        result = original(self, batch)
        if now == step:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(_Fit, "update", update)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which updates were made."""
    original, steps = _Fit.update, []

    def update(self: _Fit, batch: Any) -> Any:
        steps.append(self.step)
        return original(self, batch)

    monkeypatch.setattr(_Fit, "update", update)
    return steps


# Nine steps, three an epoch.
@pytest.mark.parametrize(
    ("step", "when"),
    [(1, "before"), (3, "before"), (5, "before"), (8, "before"), (0, "after"), (4, "after")],
)
@pytest.mark.parametrize("name", ["ft", "lwf", "ewc"])
def test_a_run_that_was_killed_ends_like_one_that_was_not(
    name: str, step: int, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: the same method without an interruption; and it goes on, it does not start again."""

    def run() -> Classifier:
        task = task_for(name, work=tmp_path)
        return METHODS[name]().finetune(task)

    expected = made(name)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(step, when, patch)
        run()
    with monkeypatch.context() as patch:
        steps = counted(patch)
        assert_same(run(), expected)
        assert steps == list(range(step, 9))
    with monkeypatch.context() as patch:
        steps = counted(patch)
        assert_same(run(), expected)
        assert steps == []


@pytest.mark.parametrize("name", ["ft", "lwf", "ewc"])
def test_keeping_state_changes_nothing(name: str, tmp_path: Path) -> None:
    """Source: the same method without a folder for its state."""
    result = METHODS[name]().finetune(task_for(name, work=tmp_path))
    assert_same(result, made(name))
    assert not list(tmp_path.glob("state-*"))
