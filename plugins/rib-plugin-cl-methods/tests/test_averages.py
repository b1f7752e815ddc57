"""What the methods compute that choose among checkpoints or average them.

Expected values come from the papers' formulas in numpy and from checkpoints whose accuracies are
known because they were built for it; each test says from which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rib_plugin_cl_methods.best_of import BestOf
from rib_plugin_cl_methods.ft import FineTuning
from rib_plugin_cl_methods.greedy_soup import GreedySoup
from rib_plugin_cl_methods.model_stock import ModelStock, ratio
from torch import Tensor, nn

from rib_harness import Classifier, ConfigError, Task
from rib_harness.testing import TINY, tiny_classifier, tiny_images, tiny_task


def assert_same(left: nn.Module, right: nn.Module) -> None:
    torch.testing.assert_close(left.state_dict(), right.state_dict(), atol=0, rtol=0)


# Checkpoints of known accuracy: image k of ten is black but for one white pixel, so that a linear
# model's answer to it is a number in a table. All are of class 0 of two.


def table_model(margins: Sequence[float]) -> Classifier:
    """A classifier that gives image k the margin `margins[k]` for class 0."""
    model = Classifier(nn.Flatten(), nn.Linear(192, 2), TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # Pixels are (v − 0.5) / 0.25: −2 where black and 2 where white, in three colours.
        for k, margin in enumerate(margins):
            model.head.weight[0, k:192:64] = margin / 12
        model.head.bias[0] = 2 * model.head.weight[0].sum()
    return model


def table_task(members: Mapping[str, Sequence[float]]) -> Task:
    """A task whose held-out part are the ten images, with a checkpoint for each row."""
    pictures = np.zeros((10, 8, 8, 3), dtype=np.uint8)
    pictures[np.arange(10), np.arange(10) // 8, np.arange(10) % 8] = 255
    held = replace(
        tiny_images(n=10, classes=2),
        labels=np.zeros(10, dtype=np.int64),
        read=lambda i: Image.fromarray(pictures[i]),
    )
    return tiny_task(
        images=tiny_images(classes=2),
        pretrained=table_model(row(0)),
        held=held,
        checkpoints={name: table_model(margins) for name, margins in members.items()},
    )


def row(right: int, margin: float = 2.0, wrong: float = -1.0) -> list[float]:
    """Margins that get the first `right` images right."""
    return [margin] * right + [wrong] * (10 - right)


def scores(margins: Sequence[float]) -> dict[str, Any]:
    """Accuracy in % and the mean of log(1 + e^−margin), in numpy."""
    m = np.array(margins)
    loss = np.log1p(np.exp(-m)).mean()
    return {"accuracy": 100 * (m > 0).mean(), "loss": pytest.approx(loss, rel=1e-4), "n": 10}


# greedy-soup

A = row(6)
HELPS = [-1.0] * 5 + [3.0] * 4 + [-1.0]  # 4 right alone, 9 with A
HURTS = [-9.0] * 6 + [0.5] * 3 + [-1.0]  # 3 right alone, none with A


def mean_of(*rows: Sequence[float]) -> list[float]:
    return list(np.mean(rows, axis=0))


def test_greedy_soup_keeps_what_helps_and_leaves_what_hurts() -> None:
    """Source: recipe 1 of arXiv:2203.05482, followed in a table of margins."""
    table = {"hurts": HURTS, "helps": HELPS, "best": A}
    assert [scores(table[one])["accuracy"] for one in table] == [30, 40, 60]
    assert scores(mean_of(A, HELPS))["accuracy"] == 90
    assert scores(mean_of(A, HELPS, HURTS))["accuracy"] < 90
    task = table_task(table)
    soup = GreedySoup(members="hurts+helps+best").finetune(task)
    torch.testing.assert_close(
        soup.state_dict(), table_model(mean_of(A, HELPS)).state_dict(), atol=1e-6, rtol=1e-6
    )
    assert task.facts == {
        "chosen": ["best", "helps"],
        "tried": {name: scores(margins) for name, margins in table.items()},
        "held_out_accuracy": 90,
    }


def test_greedy_soup_tries_on_behind_one_that_hurts() -> None:
    """Source: a table in which the second best hurts and the third helps."""
    hurts = [-9.0] * 5 + [0.5] * 5  # 5 right alone, between the other two
    task = table_task({"helps": HELPS, "hurts": hurts, "best": A})
    soup = GreedySoup(members="helps+hurts+best").finetune(task)
    assert task.facts["chosen"] == ["best", "helps"]
    torch.testing.assert_close(
        soup.state_dict(), table_model(mean_of(A, HELPS)).state_dict(), atol=1e-6, rtol=1e-6
    )


def test_greedy_soup_adds_what_changes_nothing() -> None:
    """Source: the paper's ≥: a member that leaves the accuracy as it is belongs to the soup."""
    task = table_task({"one": row(6), "two": row(6, margin=1.0)})
    soup = GreedySoup(members="two+one").finetune(task)
    assert task.facts["chosen"] == ["one", "two"]  # of equal accuracy, the lower loss first
    assert task.facts["held_out_accuracy"] == 60
    expected = table_model(mean_of(row(6), row(6, margin=1.0)))
    torch.testing.assert_close(soup.state_dict(), expected.state_dict(), atol=1e-6, rtol=1e-6)


def test_the_order_of_a_greedy_soup_is_that_of_accuracy_and_not_of_its_members() -> None:
    """Source: two members that fit with the best but not with each other; the better one wins."""
    best = row(7, margin=1.0)
    second = [1.0] * 6 + [-1.0] + [3.0, -9.0, -9.0]  # 7 right, 8 with the best
    third = [1.0] * 6 + [-9.0, -9.0, -9.0, -9.0]  # 6 right
    for members in ("best+second+third", "third+second+best"):
        task = table_task({"best": best, "second": second, "third": third})
        GreedySoup(members=members).finetune(task)
        assert task.facts["chosen"] == ["best", "second"], members
        assert task.facts["held_out_accuracy"] == 80


def test_a_greedy_soup_of_one_is_that_one() -> None:
    """Source: the checkpoint, and the pretrained model, to the bit, with batch-norm."""
    tuned = FineTuning().finetune(tiny_task())
    task = tiny_task(checkpoints={"ft": tuned}, held=tiny_images(seed=3))
    assert_same(GreedySoup(members="ft").finetune(task), tuned)
    assert_same(GreedySoup(members="pretrained").finetune(task), task.pretrained)


def test_a_greedy_soup_averages_statistics_or_takes_them_anew() -> None:
    """Source: mean and variance of the first layer's outputs over that set, in plain torch.

    Three batches of 8: the mean of their means, and of their unbiased variances.
    """
    same = tiny_classifier(seed=1)
    task = tiny_task(checkpoints={"a": same, "b": same.copy().eval()}, held=tiny_images(seed=3))
    averaged = GreedySoup(members="a+b").finetune(task)
    assert task.facts["chosen"] == ["a", "b"]
    torch.testing.assert_close(averaged.state_dict(), same.state_dict())
    recomputed = GreedySoup(members="a+b", batch_norm="recompute").finetune(task)
    with torch.no_grad():
        order = torch.randperm(24, generator=task.generator("batch-norm"))
        batches = task.batches(8, order)
        parts = [same.encoder[0](batch.images) for batch in batches]  # type: ignore[index]
    mean = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    variance = torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0)
    norm = recomputed.encoder[1]  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)


# best-of


def test_best_of_takes_the_most_accurate_and_says_so() -> None:
    """Source: the table."""
    table = {"a": row(4), "b": row(8, margin=0.1), "c": row(7)}
    assert scores(table["b"])["loss"].expected > scores(table["c"])["loss"].expected
    task = table_task(table)
    assert_same(BestOf("a+b+c").finetune(task), table_model(table["b"]))
    assert task.facts == {
        "same_as": "b",
        "chosen": "b",
        "tried": {name: scores(margins) for name, margins in table.items()},
    }


@pytest.mark.parametrize("members", ["sure+unsure", "unsure+sure"])
def test_best_of_tells_equal_accuracies_apart_by_the_loss(members: str) -> None:
    """Source: the table: both get 6 right."""
    task = table_task({"sure": row(6), "unsure": row(6, margin=1.0)})
    assert_same(BestOf(members).finetune(task), table_model(row(6)))
    assert task.facts["same_as"] == "sure"


def test_best_of_takes_the_first_of_equals_and_knows_the_pretrained() -> None:
    """Source: the same checkpoint under two names; the pretrained one gets nothing right."""
    task = table_task({"x": row(6), "y": row(6)})
    BestOf("pretrained+y+x").finetune(task)
    assert task.facts["chosen"] == "y"
    assert list(task.facts["tried"]) == ["pretrained", "y", "x"]
    assert_same(BestOf("pretrained").finetune(task), task.pretrained)
    assert task.facts["same_as"] == "pretrained"


@pytest.mark.parametrize("method", [BestOf("pretrained"), GreedySoup("pretrained")])
def test_nothing_is_chosen_without_held_out_images(method: Any) -> None:
    """Source: the contract of `held_out`."""
    with pytest.raises(ConfigError, match="nothing is held out"):
        method.finetune(tiny_task())


# model-stock


def at_angle(degrees: float, length: float = 1.0) -> Tensor:
    return length * torch.tensor([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


@pytest.mark.parametrize(
    ("degrees", "lengths", "t"),
    [
        (60, (1, 1), 2 * 0.5 / (1 + 0.5)),
        (60, (0.1, 7), 2 * 0.5 / (1 + 0.5)),  # the angle counts and not the lengths
        (30, (1, 1), 2 * np.sqrt(3) / 2 / (1 + np.sqrt(3) / 2)),
        (0, (1, 1), 1.0),
        (90, (1, 1), 0.0),
        (120, (1, 1), 0.0),  # 2 · −0.5 / 0.5 = −2
        (180, (1, 1), 0.0),  # −2 / 0
    ],
)
def test_the_ratio_of_two_moves(degrees: float, lengths: Any, t: float) -> None:
    """Source: t = 2 cos φ / (1 + cos φ), within 0 … 1."""
    moves = [at_angle(10, lengths[0]), at_angle(10 + degrees, lengths[1])]
    assert ratio(moves) == pytest.approx(t, abs=1e-7)
    assert 0 <= ratio(moves) <= 1


def test_the_ratio_of_three_moves() -> None:
    """Source: t = 3 c / (1 + 2 c), by hand.

    c = 1/2 between any two of (1,1,0), (1,0,1), (0,1,1); for unequal angles c is their mean.
    """
    moves = torch.tensor([[1.0, 1, 0], [1, 0, 1], [0, 1, 1]])
    assert ratio(list(moves)) == pytest.approx(3 * 0.5 / 2)
    c = (np.cos(np.radians(20)) + np.cos(np.radians(40)) + np.cos(np.radians(60))) / 3
    uneven = [at_angle(0), at_angle(20), at_angle(60)]
    assert ratio(uneven) == pytest.approx(3 * c / (1 + 2 * c))
    assert ratio(list(torch.eye(3))) == 0


def test_the_ratio_is_that_of_the_nearest_point_to_the_centre() -> None:
    """Source: the paper's geometry: θ₀ and N points alike far from a centre, alike apart.

    The point of their plane nearest to the centre lies on the line from θ₀ to their mean; found
    by least squares for N = 4 in twelve dimensions.
    """
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    centre = 1.7 * axes[0]
    points = [centre + 0.9 * axes[1 + n] for n in range(4)]  # noise of one length, orthogonal
    basis = np.stack(points, 1)
    nearest = basis @ np.linalg.lstsq(basis, centre, rcond=None)[0]
    mean = np.mean(points, 0)
    t = (nearest @ mean) / (mean @ mean)
    np.testing.assert_allclose(nearest, t * mean, atol=1e-12)
    assert ratio([torch.tensor(point) for point in points]) == pytest.approx(t)


def test_a_layer_that_one_member_did_not_move_stays() -> None:
    """Source: there is no angle."""
    assert ratio([torch.zeros(3), torch.zeros(3)]) == 0
    assert ratio([torch.ones(3), torch.zeros(3)]) == 0


def shifted(model: Classifier, moves: Mapping[str, Tensor]) -> Classifier:
    result = model.copy().eval()
    with torch.no_grad():
        for name, move in moves.items():
            result.get_parameter(name).add_(move)
    return result


@pytest.mark.parametrize("members", ["a+b", "a+b+c"])
def test_model_stock_goes_layer_by_layer(members: str) -> None:
    """Source: angles, t and interpolation in numpy and float64; layers moved in several ways."""
    start = tiny_classifier(batchnorm=False)
    rng = np.random.default_rng(1)
    theta0 = {n: p.detach().double().numpy() for n, p in start.named_parameters()}
    names, count = members.split("+"), len(members.split("+"))
    common = {n: rng.standard_normal(p.shape) for n, p in theta0.items()}
    moves = [
        {n: 0.1 * (common[n] + rng.standard_normal(p.shape)) for n, p in theta0.items()}
        for _ in names
    ]
    for move in moves:
        move["encoder.0.bias"] *= 0  # did not move
        move["head.bias"] = common["head.bias"]  # moved alike
    moves[1]["head.weight"] = -moves[0]["head.weight"]  # moved apart
    if count == 3:
        moves[2]["head.weight"] = moves[0]["head.weight"]  # the mean of the cosines is −1/3
    models = {
        name: shifted(start, {n: torch.tensor(m).float() for n, m in move.items()})
        for name, move in zip(names, moves, strict=True)
    }
    task = tiny_task(pretrained=start, checkpoints=models)
    result = ModelStock(members=members).finetune(task)
    t = {"encoder.0.bias": 0.0, "head.bias": 1.0, "head.weight": 0.0}
    flat = [move["encoder.0.weight"].ravel() for move in moves]
    unit = np.stack([f / np.linalg.norm(f) for f in flat])
    cosine = ((unit @ unit.T).sum() - count) / (count * (count - 1))
    t["encoder.0.weight"] = count * cosine / (1 + (count - 1) * cosine)
    assert 0.4 < t["encoder.0.weight"] < 0.9
    for name, parameter in result.named_parameters():
        mean = theta0[name] + sum(move[name] for move in moves) / count
        expected = t[name] * mean + (1 - t[name]) * theta0[name]
        np.testing.assert_allclose(parameter.detach(), expected, atol=1e-5, err_msg=name)
    assert task.facts == {"ratios": {n: pytest.approx(one, abs=1e-4) for n, one in t.items()}}


@pytest.mark.parametrize("batch_norm", ["average", "recompute"])
def test_model_stock_moves_statistics_as_weights(batch_norm: Any) -> None:
    """Source: angle, t and interpolation in numpy, of the running means; `recompute_batchnorm`."""
    start = tiny_classifier()
    models = {str(seed): FineTuning().finetune(tiny_task(seed=seed)) for seed in (1, 2)}
    task = tiny_task(pretrained=start, checkpoints=models)
    result = ModelStock(members="1+2", batch_norm=batch_norm).finetune(task)
    name = "encoder.1.running_mean"
    theta0 = start.state_dict()[name].double().numpy()
    ends = [model.state_dict()[name].double().numpy() for model in models.values()]
    a, b = (end - theta0 for end in ends)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    t = 2 * cosine / (1 + cosine)
    expected = theta0 + t * (np.mean(ends, 0) - theta0)
    if batch_norm == "recompute":
        expected = task.recompute_batchnorm(result.copy()).state_dict()[name].numpy()
    np.testing.assert_allclose(result.state_dict()[name], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: ModelStock(members="ft"),
            "model-stock: expected two different fine-tunings at least, got ft.",
        ),
        (
            lambda: ModelStock(members="pretrained+ft"),
            "model-stock: expected two different fine-tunings at least, got pretrained+ft.",
        ),
        (lambda: BestOf("none").finetune(table_task({})), "no checkpoint of 'none'"),
        (lambda: GreedySoup("none").finetune(table_task({})), "no checkpoint of 'none'"),
        (lambda: ModelStock("none+ft").finetune(tiny_task()), "no checkpoint of 'none'"),
    ],
)
def test_a_wrong_option_is_told(make: Any, text: str) -> None:
    """Source: the options' meaning."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)


def test_statistics_do_not_depend_on_the_order_in_which_a_set_is_kept() -> None:
    """Source: the variance over the whole set, in numpy; sorted by class it came out too small.

    Pictures of a class are equally bright, so that a batch of one class varies little.
    """
    images = tiny_images(n=240)
    bright = tiny_classifier()
    sorted_by_class = images.taken(np.argsort(images.labels, kind="stable"))
    task = tiny_task(images=sorted_by_class, pretrained=bright)
    result = task.recompute_batchnorm(bright.copy())
    with torch.no_grad():
        seen = bright.encoder[0](next(task.batches(240)).images)  # type: ignore[index]
        in_order = torch.stack([s.var((0, 2, 3)) for s in seen.split(8)]).mean(0)
    whole = seen.var((0, 2, 3))
    got = result.encoder[1].running_var  # type: ignore[index]
    assert ((got - whole).abs() <= (in_order - whole).abs()).all()
