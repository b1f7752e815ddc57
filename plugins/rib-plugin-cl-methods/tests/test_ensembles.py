"""What the methods compute that keep several models: ensemble and dawin.

Expected values come from numpy, scipy, plain torch loops and the authors' code; each test says
from which.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rib_plugin_cl_methods.dawin import Between, DynamicInterpolation, entropy
from rib_plugin_cl_methods.ensemble import OutputEnsemble
from rib_plugin_cl_methods.ft import FineTuning
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy
from torch import Tensor, nn

import rib_harness
from rib_harness import Classifier, ConfigError
from rib_harness.testing import TINY, tiny_classifier, tiny_task, tiny_vit

#: What the authors' code gives; see make_clipood_dawin_twins.py.
AUTHORS = json.loads(Path(__file__).with_name("clipood_dawin_twins.json").read_text())["dawin"]

nets = pytest.mark.parametrize("net", [tiny_classifier, tiny_vit])


def images(n: int = 5) -> Tensor:
    """Of contrasts from hardly any to a high one, of which models are differently sure."""
    noise = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return noise * torch.linspace(0.1, 8, n)[:, None, None, None]


def logits_of(model: Classifier, n: int = 5) -> np.ndarray:
    with torch.no_grad():
        made: np.ndarray = model.eval()(images(n)).double().numpy()
    return made


def trained(net: Any, seed: int = 0) -> Classifier:
    """Far from its start, with other batch-norm statistics, and sure of some images only."""
    model = FineTuning().finetune(tiny_task(pretrained=net(), seed=seed, epochs=8, lr=0.3))
    with torch.no_grad():
        model.head.get_parameter("weight").mul_(3)
    return model


# ensemble


@nets
@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize(
    ("members", "alpha", "weights"),
    [
        ("pretrained+ft", 0.3, [0.7, 0.3]),
        ("ft+pretrained", 0.3, [0.3, 0.7]),
        ("pretrained+ft+ft@1", 0.8, [0.2, 0.4, 0.4]),
        ("ft+ft@1", 0.9, [0.5, 0.5]),
        ("pretrained+ft", 0.0, [1, 0]),
        ("pretrained+ft", 1.0, [0, 1]),
    ],
)
def test_an_ensemble_is_the_weighted_mean_of_answers(
    net: Any, average: Any, members: str, alpha: float, weights: Sequence[float]
) -> None:
    """Source: numpy and scipy's softmax, over the members' own logits."""
    models = {"pretrained": net(), "ft": trained(net), "ft@1": trained(net, seed=1)}
    task = tiny_task(pretrained=net(), checkpoints={n: models[n] for n in ("ft", "ft@1")})
    made = OutputEnsemble(members, alpha, average).finetune(task)
    parts = np.stack([logits_of(models[name]) for name in members.split("+")])
    if average == "probabilities":
        parts = softmax(parts, 2)
    expected = np.einsum("mnk,m->nk", parts, weights)
    got = logits_of(made)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(
        softmax(got, 1) if average == "probabilities" else got, expected, rtol=1e-4, atol=1e-5
    )


def test_an_ensemble_differs_from_the_average_of_weights_and_its_means_from_each_other() -> None:
    """Source: that of logits is a geometric mean of probabilities, which is another."""
    task = tiny_task(checkpoints={"ft": trained(tiny_classifier)})
    rows = [softmax(logits_of(OutputEnsemble(average=how).finetune(task)), 1)
            for how in ("probabilities", "logits")]  # fmt: skip
    assert np.abs(rows[0] - rows[1]).max() > 1e-3


def test_probabilities_too_small_for_a_number_keep_their_order() -> None:
    """Source: log(½ (e^−300 + e^−400)) = −300 − log 2, by hand; in float32 e^−104 is 0."""

    class Fixed(nn.Module):
        def __init__(self, *row: float):
            super().__init__()
            self.row = nn.Parameter(torch.tensor([row], dtype=torch.float32))

        def forward(self, features: Tensor) -> Tensor:
            return self.row.expand(len(features), -1)

    models = [Classifier(nn.Flatten(), Fixed(0, -300, -500), TINY),
              Classifier(nn.Flatten(), Fixed(0, -400, -500), TINY)]  # fmt: skip
    got = logits_of(OutputEnsemble().of(models))
    np.testing.assert_allclose(got[0], [0, -300 - np.log(2), -500], atol=1e-4)


def test_what_an_ensemble_is_given_stays() -> None:
    """Source: the fingerprints before; members are copies."""
    task = tiny_task(checkpoints={"ft": trained(tiny_classifier)})
    before = task.pretrained.fingerprint(), task.checkpoints["ft"].fingerprint()
    made = OutputEnsemble().finetune(task)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert before == (task.pretrained.fingerprint(), task.checkpoints["ft"].fingerprint())


# dawin


def test_entropy_and_share_are_the_authors() -> None:
    """Source: clipood_dawin_twins.json; and scipy's entropy."""
    old, new = torch.tensor(AUTHORS["old"]).double(), torch.tensor(AUTHORS["new"]).double()
    for logits, expected in zip((old, new), AUTHORS["entropies"], strict=True):
        np.testing.assert_allclose(entropy(logits), expected, rtol=1e-6)
        np.testing.assert_allclose(entropy(logits), scipy_entropy(softmax(logits, 1), axis=1))
    between = Between(tiny_classifier(), tiny_classifier(), levels=0, weights=True)
    np.testing.assert_allclose(between.share(old, new), AUTHORS["share"], rtol=1e-6)
    between.levels = 4
    np.testing.assert_allclose(
        between.share(old, new), np.round(4 * np.array(AUTHORS["share"])) / 4
    )


def by_hand(task: Any, one: Tensor, levels: int) -> Classifier:
    """The interpolated model of one image, by load_state_dict."""
    old, new = task.pretrained, task.checkpoints["ft"]
    with torch.no_grad():
        a, b = (np.exp(-scipy_entropy(softmax(m.eval()(one[None]).double().numpy()[0])))
                for m in (old, new))  # fmt: skip
    share = b / (a + b)
    share = np.round(share * levels) / levels if levels else share
    model = old.copy()
    state = {key: ((1 - share) * value + share * new.state_dict()[key]).to(value.dtype)
             for key, value in old.state_dict().items()}  # fmt: skip
    model.load_state_dict(state)
    return model.eval()


@nets
@pytest.mark.parametrize("levels", [0, 10, 30])
def test_each_image_has_weights_of_its_own(net: Any, levels: int) -> None:
    """Source: for each image alone, the interpolated state dict loaded into a copy, in numpy."""
    task = tiny_task(pretrained=net(), checkpoints={"ft": trained(net)})
    made = DynamicInterpolation(levels=levels).finetune(task)
    with torch.no_grad():
        expected = torch.cat([by_hand(task, one, levels)(one[None]) for one in images(24)])
        torch.testing.assert_close(made(images(24)), expected, rtol=1e-4, atol=1e-5)
        ends = task.pretrained(images(24)), task.checkpoints["ft"](images(24))
        assert len(made.encoder.share(*ends).unique()) > 1  # type: ignore[operator]


@pytest.mark.parametrize("space", ["weights", "outputs"])
@pytest.mark.parametrize("levels", [0, 10])
def test_an_image_is_answered_alike_in_every_batch(space: Any, levels: int) -> None:
    """Source: the same images one at a time: nothing is learned from the others."""
    task = tiny_task(checkpoints={"ft": trained(tiny_classifier)})
    made = DynamicInterpolation(space=space, levels=levels).finetune(task)
    with torch.inference_mode():
        alone = torch.cat([made(one[None]) for one in images(9)])
        torch.testing.assert_close(made(images(9)), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", [0, 10])
def test_outputs_are_averaged_with_the_same_share(levels: int) -> None:
    """Source: numpy and scipy, image by image."""
    task = tiny_task(checkpoints={"ft": trained(tiny_classifier)})
    made = DynamicInterpolation(space="outputs", levels=levels).finetune(task)
    p, q = (softmax(logits_of(m), 1) for m in (task.pretrained, task.checkpoints["ft"]))
    a, b = (np.exp(-scipy_entropy(rows, axis=1)) for rows in (p, q))
    share = b / (a + b)
    share = (np.round(share * levels) / levels if levels else share)[:, None]
    np.testing.assert_allclose(
        softmax(logits_of(made), 1), (1 - share) * p + share * q, rtol=1e-4, atol=1e-6
    )


@nets
def test_between_a_model_and_itself_is_that_model(net: Any) -> None:
    """Source: the pretrained model's logits, to the bit."""
    made = DynamicInterpolation(base="pretrained").finetune(tiny_task(pretrained=net()))
    np.testing.assert_array_equal(logits_of(made), logits_of(net()))


def test_a_model_that_diverged_is_not_hidden() -> None:
    """Source: NaN weights; what is evaluated must be told so."""
    broken = tiny_classifier().copy()
    with torch.no_grad():
        broken.head.weight.fill_(torch.nan)
    for space in ("weights", "outputs"):
        task = tiny_task(checkpoints={"ft": broken})
        made = DynamicInterpolation(space=space).finetune(task)  # type: ignore[arg-type]
        assert np.isnan(logits_of(made)).all()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: OutputEnsemble(alpha=1.1), "ensemble: expected alpha in 0 … 1, got 1.1."),
        (lambda: OutputEnsemble(members="ft+"), "ensemble: expected members such as"),
        (lambda: DynamicInterpolation(levels=-1), "dawin: expected levels ≥ 0, got -1."),
    ],
)
def test_a_wrong_option_is_told(make: Any, text: str) -> None:
    """Source: the options' meaning."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["digits-vit", "digits-conv"])
def test_they_run_through_the_harness(backbone: str, tmp_path: Path) -> None:
    """Source: alpha 0 is the pretrained model and 1 the fine-tuned one, image by image."""
    methods = ["ft", "ensemble:alpha=0", "ensemble:alpha=1", "ensemble:members=ft+ft@1", "dawin",
               "dawin:space=outputs"]  # fmt: skip
    results = rib_harness.run(
        backbone=backbone,
        method=methods,
        dataset=["digits-r", "digits-a"],
        recipe={"epochs": 1},
        limit=30,
        store=tmp_path / "store",
    )
    tables = {run.method: run.matrix for run in results}
    assert len(tables) == len(methods) and all(table.complete for table in tables.values())
    ft = tables["ft"]
    for name in ft.members:
        for source in ft.sources:
            assert tables["ensemble:alpha=1.0"].post[source][name] == ft.post[source][name]
            assert tables["ensemble:alpha=0.0"].post[source][name].top1 == ft.pre[name].top1
