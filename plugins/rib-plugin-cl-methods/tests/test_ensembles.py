"""Ensembles of outputs, and weights by the image: against numpy, scipy and averages by hand."""

import numpy as np
import pytest
import torch
from rib_plugin_cl_methods.averaging import weighted_mean
from rib_plugin_cl_methods.dawin import DynamicInterpolation
from rib_plugin_cl_methods.ensemble import OutputEnsemble
from scipy import special, stats

from rib_harness import Classifier, ConfigError
from rib_harness.testing import tiny_classifier, tiny_task, tiny_vit

NETS = pytest.mark.parametrize("net", [tiny_classifier, tiny_vit])


def answers(model: Classifier, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(images).double().numpy()  # type: ignore[no-any-return]


def probe() -> torch.Tensor:
    return torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def apart(net: object, seed: int) -> Classifier:
    """Another classifier of the architecture, sure of what it says."""
    model: Classifier = net(seed=seed)  # type: ignore[operator]
    with torch.no_grad():
        model.head.weight.mul_(30)  # type: ignore[operator, union-attr]
    return model


@NETS
@pytest.mark.parametrize(
    ("members", "weights"),
    [("pretrained+ft", (0.7, 0.3)), ("ft+ft@1+ft@2", (1 / 3,) * 3),
     ("ft+pretrained+ft@1", (0.15, 0.7, 0.15)), ("pretrained", (1.0,))],
)  # fmt: skip
def test_an_ensemble_averages_what_its_members_answer(
    net: object, members: str, weights: tuple[float, ...]
) -> None:
    """Source: softmax and a weighted mean in numpy."""
    models = {name: apart(net, k) for k, name in enumerate(("pretrained", "ft", "ft@1", "ft@2"))}
    task = tiny_task(pretrained=models["pretrained"], checkpoints=models)
    each = np.stack([answers(models[name], probe()) for name in members.split("+")])
    result = answers(OutputEnsemble(members, alpha=0.3).finetune(task), probe())
    expected = np.tensordot(weights, special.softmax(each, 2), 1)
    np.testing.assert_allclose(special.softmax(result, 1), expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(np.exp(result).sum(1), 1, rtol=1e-5)
    logits = answers(OutputEnsemble(members, 0.3, "logits").finetune(task), probe())
    np.testing.assert_allclose(logits, np.tensordot(weights, each, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_its_ends_an_ensemble_is_one_of_two(alpha: float) -> None:
    """Source: that classifier."""
    ends = [apart(tiny_vit, 0), apart(tiny_vit, 1)]
    task = tiny_task(pretrained=ends[0], checkpoints={"ft": ends[1]})
    result = OutputEnsemble(alpha=alpha).finetune(task)
    expected = special.log_softmax(answers(ends[int(alpha)], probe()), 1)
    np.testing.assert_allclose(answers(result, probe()), expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"members": "ft+ft"}, {"members": ""}, {"alpha": 1.5}])
def test_an_ensemble_refuses_what_is_none(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^ensemble: expected"):
        OutputEnsemble(**options)  # type: ignore[arg-type]


@NETS
@pytest.mark.parametrize("levels", [4, 1000])
def test_dawin_classifies_each_image_by_weights_of_its_own(net: object, levels: int) -> None:
    """Source: entropies by scipy; for each image a classifier of averaged weights."""
    start, end = apart(net, 0), apart(net, 1)
    task = tiny_task(pretrained=start, checkpoints={"ft": end})
    result = DynamicInterpolation(levels=levels).finetune(task)
    sure = [
        np.exp(-stats.entropy(special.softmax(answers(model, probe()), 1), axis=1))
        for model in (start, end)
    ]
    shares = np.round(levels * sure[1] / (sure[0] + sure[1])) / levels
    assert len(set(shares)) > 1 and 0 < shares.mean() < 1
    expected = np.concatenate(
        [
            answers(weighted_mean([start, end], [1 - share, share]), image[None])
            for share, image in zip(shares, probe(), strict=True)
        ]
    )
    np.testing.assert_allclose(answers(result, probe()), expected, rtol=1e-3, atol=1e-4)
    one_by_one = np.concatenate([answers(result, image[None]) for image in probe()])
    np.testing.assert_allclose(answers(result, probe()), one_by_one, rtol=1e-3, atol=1e-4)
