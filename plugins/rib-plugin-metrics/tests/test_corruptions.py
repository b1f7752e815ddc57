"""mCE and relative mCE against the published table and the published ResNet-50."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from rib_plugin_metrics.corruptions import ALEXNET, corruption_errors, mce, relative_mce

from rib_harness import Cell, InapplicableError, IncompleteError, Matrix, Scores
from rib_harness.scores import SCORES

#: ResNet-50's CE on each corruption as printed in arXiv:1903.12261, in %, and its clean error.
RESNET50 = {
    "gaussian_noise": 80, "shot_noise": 82, "impulse_noise": 83,
    "defocus_blur": 75, "glass_blur": 89, "motion_blur": 78, "zoom_blur": 80,
    "snow": 78, "frost": 75, "fog": 66, "brightness": 57,
    "contrast": 71, "elastic_transform": 85, "pixelate": 77, "jpeg_compression": 77,
}  # fmt: skip
RESNET50_CLEAN = 23.9
N = 1_000_000


def groups(errors: dict[str, float]) -> dict[str, list[int]]:
    """Five severities about each mean error in %, easy to hard."""
    return {
        f"{c}/{s}": [round(N * (1 - (error + 2 * (s - 3)) / 100)), N]
        for c, error in errors.items()
        for s in range(1, 6)
    }


def cell(errors: dict[str, float]) -> Cell:
    of = groups(errors)
    return Cell(0.0, sum(right for right, _ in of.values()), N * len(of), of)


def clean(error: float) -> Cell:
    return Cell(100 - error, round(N * (1 - error / 100)), N)


def table(counts: dict[str, list[int]]) -> Scores:
    """One row an image of a few, with these [correct, n]."""
    rows = [(g, i < right) for g, (right, n) in counts.items() for i in range(n)]
    columns = {
        "group": [g for g, _ in rows],
        "prediction": [0 if right else 1 for _, right in rows],
    }
    n = len(rows)
    zeros = {f.name: np.zeros(n) for f in SCORES}
    zeros |= {"top5": np.zeros(n, bool), "source": [""] * n}
    filled = {**zeros, **columns}
    return Scores(pa.table([pa.array(filled[f.name]).cast(f.type) for f in SCORES], schema=SCORES))


def matrix() -> Matrix:
    """AlexNet after fine-tuning on V2, ResNet-50 after R; C itself is a source too."""
    resnet = {c: ce * ALEXNET[c] / 100 for c, ce in RESNET50.items()}
    rows = {
        "imagenet-v2": {"imagenet-c": cell(ALEXNET), "imagenet": clean(43.5)},
        "imagenet-r": {"imagenet-c": cell(resnet), "imagenet": clean(RESNET50_CLEAN)},
        "imagenet-c": {"imagenet-c": cell(ALEXNET), "imagenet": clean(50)},
    }
    members = ("imagenet-v2", "imagenet-r", "imagenet-c")
    pre = {"imagenet-c": cell(ALEXNET), "imagenet-v2": clean(50), "imagenet-r": clean(60)}
    return Matrix(members, ("other", "imagenet"), members, pre, rows)


def coarse(errors: dict[str, float], n: int = 50) -> dict[str, list[int]]:
    return {g: [round(n * right / N), n] for g, (right, _) in groups(errors).items()}


def test_the_corruptions_are_named_as_the_dataset_names_them() -> None:
    """Source: the groups of ImageNet-C in the plugin of the datasets."""
    published = pytest.importorskip("rib_plugin_imagenet_ood.published")
    of_c = published.groups_of(published.CORRUPTIONS)
    assert sorted(of_c) == sorted(f"{c}/{s}" for c in ALEXNET for s in range(1, 6))


def test_alexnet_has_an_mce_of_100() -> None:
    """Source: the definition; errors in steps of 1/50 leave 2 points at most."""
    counts = coarse(ALEXNET)
    errors = corruption_errors(counts)
    expected = 100 * np.mean([errors[c] / ALEXNET[c] for c in ALEXNET])
    assert mce(table(counts)) == pytest.approx(expected)
    assert mce(table(counts)) == pytest.approx(100, abs=1)
    exact = corruption_errors(groups(ALEXNET))
    assert exact == pytest.approx(ALEXNET, abs=1e-4)


def test_the_published_resnet_50() -> None:
    """Source: arXiv:1903.12261: CE of ResNet-50 as printed, its mCE 76.7 and relative mCE 105.0.

    The printed CE are whole numbers, so that their mean is 76.7 to within ½.
    """
    counts = coarse({c: ce * ALEXNET[c] / 100 for c, ce in RESNET50.items()}, n=200)
    assert mce(table(counts)) == pytest.approx(76.7, abs=0.5)
    assert relative_mce(matrix())["imagenet-r"] == pytest.approx(105.0, abs=1.5)


def test_relative_mce_of_alexnet_is_100_and_c_itself_is_no_source() -> None:
    """Source: the definition."""
    found = relative_mce(matrix())
    assert list(found) == ["imagenet-v2", "imagenet-r"]
    assert found["imagenet-v2"] == pytest.approx(100, abs=1e-3)


def test_a_missing_severity_is_incomplete_and_is_named() -> None:
    """Source: the definition: a mean over four severities is another number."""
    counts = coarse(ALEXNET)
    del counts["fog/3"]
    with pytest.raises(IncompleteError, match="no images of fog/3"):
        mce(table(counts))


@pytest.mark.parametrize(
    ("more", "less", "text"),
    [
        ("speckle_noise", "", "Lacking: nothing; beyond them: speckle_noise"),
        ("", "fog", "Lacking: fog; beyond them: nothing"),
        ("mist", "fog", "Lacking: fog; beyond them: mist"),
    ],
)
def test_other_corruptions_have_no_mce(more: str, less: str, text: str) -> None:
    """Source: the definition: AlexNet's error is known for the 15 only."""
    errors = {c: e for c, e in ALEXNET.items() if c != less} | ({more: 50.0} if more else {})
    with pytest.raises(InapplicableError, match=text):
        mce(table(coarse(errors)))


def test_a_set_without_groups_has_no_mce() -> None:
    """Source: the definition."""
    with pytest.raises(InapplicableError, match="Lacking: brightness, contrast"):
        mce(table({"": [3, 5]}))


def test_relative_mce_says_what_it_needs() -> None:
    """Source: the definition: a set of the 15, a clean error on ImageNet, another source."""
    whole = matrix()
    with pytest.raises(InapplicableError, match=r"reference 'imagenet'.*references: none"):
        relative_mce(replace(whole, references=()))
    with pytest.raises(InapplicableError, match="found none"):
        relative_mce(replace(whole, members=("imagenet-v2", "imagenet-r")))
    with pytest.raises(InapplicableError, match="a source other than imagenet-c"):
        relative_mce(replace(whole, sources=("imagenet-c",)))
    twice = {**whole.pre, "again": cell(ALEXNET)}
    with pytest.raises(InapplicableError, match="found imagenet-c, again"):
        relative_mce(replace(whole, members=(*whole.members, "again"), pre=twice))


@pytest.mark.parametrize("gone", ["imagenet-c", "imagenet"])
def test_relative_mce_without_a_cell_is_incomplete(gone: str) -> None:
    """Source: the definition, without each cell of a row in turn."""
    whole = matrix()
    row = {j: c for j, c in whole.post["imagenet-r"].items() if j != gone}
    with pytest.raises(IncompleteError, match=f"imagenet-r → {gone} has no number yet"):
        relative_mce(replace(whole, post={**whole.post, "imagenet-r": row}))


def test_relative_mce_before_anything_ran_is_incomplete() -> None:
    """Source: the definition: which member has the corruptions is not known yet."""
    with pytest.raises(IncompleteError, match="no number yet on imagenet-v2"):
        relative_mce(replace(matrix(), pre={}, post={}))
