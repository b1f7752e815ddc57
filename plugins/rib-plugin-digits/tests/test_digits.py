"""The embedded suite: what it promises of its sets and of its backbones."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rib_plugin_digits import data, plugin, pretrain
from rib_plugin_digits.backbones import WEIGHTS, DigitsBackbone
from rib_plugin_digits.data import CLASSES, Digits
from sklearn.datasets import load_digits

from rib_harness import Classifier

MEMBERS = ("v2", "a", "r", "sketch", "object", "cartoon", "drawing", "c")

#: Accuracy in % on digits-test and the mean over the members, as measured when the weights were
#: made. One image of digits-test is a third of a point.
RECORDED = {
    "conv": (98.33, 84.6),
    "vit": (97.0, 61.6),
    "vit-380": (96.0, 66.0),
    "vit-190": (96.33, 65.5),
    "vit-95": (92.33, 58.9),
    "vit-plain": (96.33, 20.1),
    "vit-at-300": (31.0, 18.4),
    "vit-at-600": (66.33, 41.6),
    "vit-at-1200": (94.33, 58.6),
}

#: Chance on each member: one over its classes.
CHANCE = {"a": 1 / 5, "r": 1 / 7, "object": 1 / 10}


def accuracy(classifier: Classifier, part: Any) -> float:
    """A loop in plain torch."""
    opened = Digits(part).open(None)
    pictures = np.stack([np.asarray(opened.image(i)) for i in range(len(opened))])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 * 2 - 1
    with torch.no_grad():
        z = classifier(images)
    best = torch.stack([z[:, list(ids)].amax(1) for ids in opened.class_map], 1).argmax(1)
    return float((best == torch.tensor(opened.labels)).float().mean())


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_both_backbones_are_good_at_home_and_hurt_but_not_lost_on_every_shift(kind: Any) -> None:
    classifier = DigitsBackbone(kind).build()
    home = accuracy(classifier, "test")
    assert home >= 0.95
    for part in MEMBERS:
        away = accuracy(classifier, part)
        chance = CHANCE.get(part, 1 / 11)
        assert away < home - 0.03, f"{part} does not hurt: {away:.3f}"
        assert away > 2 * chance, f"{part} is at chance: {away:.3f}"


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[float, float]]:
    """Kind → accuracy in % at home and the mean over the members."""
    found = {}
    for kind in RECORDED:
        classifier = DigitsBackbone(kind).build()  # type: ignore[arg-type]
        away = [accuracy(classifier, part) for part in MEMBERS]
        found[kind] = (100 * accuracy(classifier, "test"), 100 * float(np.mean(away)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECORDED)
def test_every_pretraining_is_as_good_as_it_was(
    kind: str, measured: dict[str, tuple[float, float]]
) -> None:
    """Source: a loop in plain torch, and what it gave when the weights were made."""
    assert measured[kind] == pytest.approx(RECORDED[kind], abs=0.7)


@pytest.mark.slow
def test_pretrainings_differ_as_they_should(measured: dict[str, tuple[float, float]]) -> None:
    """Fewer images are worse at home; without augmentation robustness was never learnt."""
    home = {kind: found[0] for kind, found in measured.items()}
    assert home["vit-95"] < min(home["vit-190"], home["vit-380"]) - 3
    assert max(home["vit-190"], home["vit-380"]) < home["vit"]
    assert home["vit-at-300"] < home["vit-at-600"] < home["vit-at-1200"] < home["vit"]
    assert measured["vit-plain"][0] > 95
    assert measured["vit-plain"][1] < measured["vit-95"][1] - 30


def test_smaller_pretrainings_are_drawn_in_proportion_and_nested() -> None:
    """Source: counts of scikit-learn's labels."""
    opened = Digits("train").open(None)
    ids = np.array([opened.class_map[label][0] for label in opened.labels])
    drawn = {n: pretrain.stratified(ids, n) for n in (95, 190, 380)}
    for n, chosen in drawn.items():
        assert len(set(chosen.tolist())) == n
        share = np.bincount(ids, minlength=11) * n / len(ids)
        assert np.abs(np.bincount(ids[chosen], minlength=11) - share).max() < 1
    assert set(drawn[95]) < set(drawn[190]) < set(drawn[380])


def test_the_registered_facts_are_those_of_the_pretraining() -> None:
    specs = {spec.name.removeprefix("digits-"): spec for spec in plugin.register_backbones()}
    assert set(specs) == set(RECORDED) == set(pretrain.PRETRAININGS)
    for kind, how in pretrain.PRETRAININGS.items():
        spec = specs[kind]
        assert spec.pretraining_images == how.images
        assert spec.pretraining == f"{how.images} digits" + " + augment" * how.augment
        assert spec.has == DigitsBackbone(kind).identity().has  # type: ignore[arg-type]


def test_the_sets_are_the_same_pixels_at_every_making() -> None:
    one, two = data.make(), data.make()
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_fingerprints_do_not_depend_on_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = [Digits(part).open(None).fingerprint for part in MEMBERS]  # type: ignore[arg-type]
    monkeypatch.setenv("RIB_CACHE", str(tmp_path))
    fresh = [Digits(part).open(None).fingerprint for part in MEMBERS]  # type: ignore[arg-type]
    assert kept == fresh
    assert len(set(kept)) == len(MEMBERS)


@pytest.mark.parametrize("flips", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_no_bit_of_the_cache_changes_a_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flips: int
) -> None:
    """Else the fingerprint, and with it the numbers, are of other pictures."""
    monkeypatch.setenv("RIB_CACHE", str(tmp_path))
    small = {name: array[:5] for name, array in data.make().items()}
    monkeypatch.setattr(data, "make", lambda: small)
    data._load()
    (file,) = (tmp_path / "digits").iterdir()
    whole, rng = file.read_bytes(), np.random.default_rng(flips)

    def check() -> None:
        read = data._load()
        assert read.keys() == small.keys()
        assert all(np.array_equal(read[name], small[name]) for name in small)

    for bit in rng.integers(8 * len(whole), size=flips).tolist():
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        check()
    file.write_bytes(b"")
    check()
    file.unlink()
    (file / "folder").mkdir(parents=True)
    check()
    assert file.read_bytes() == whole


def test_labels_are_scikit_learns() -> None:
    """Each image's label id, taken back to scikit-learn's target through its source."""
    target = load_digits().target
    for part in ("train", "test", *MEMBERS):
        opened = Digits(part).open(None)  # type: ignore[arg-type]
        for label, source in zip(opened.labels, opened.source, strict=True):
            ids = opened.class_map[label]
            digits = {1 if i == data.FLAGGED_ONE else i for i in ids}
            assert digits == {target[int(source.removeprefix("digit-"))]}


def test_photographs_are_shared_only_where_the_suite_says_so() -> None:
    parts = {p: set(Digits(p).open(None).source) for p in ("train", "test", *MEMBERS)}  # type: ignore[arg-type]
    from_test = {"test", "cartoon", "drawing", "c"}
    for one in parts:
        for two in parts:
            if one < two:
                shared = bool(parts[one] & parts[two])
                assert shared == ({one, two} <= from_test), (one, two)


def test_the_object_set_has_two_ids_for_one_class_and_no_border() -> None:
    opened = Digits("object").open(None)
    assert opened.class_map[1] == (1, data.FLAGGED_ONE)
    picture = np.asarray(opened.image(0))
    assert picture.shape == (32, 32, 3)
    made = data.make()["object/pictures"]
    border = np.concatenate([made[:, :2].reshape(-1, 3), made[:, :, -2:].reshape(-1, 3)])
    assert (border == (255, 0, 0)).all()
    assert not (picture[0] == (255, 0, 0)).all()


def test_subsets_and_groups_mirror_the_papers() -> None:
    assert len(Digits("r").open(None).classes) == 7
    assert len(Digits("a").open(None).classes) == 5
    groups = Digits("c").open(None).group
    names, counts = np.unique(groups, return_counts=True)
    assert len(names) == 8 * 5
    assert set(counts) == {50}
    assert len(CLASSES) == 11


def test_the_weights_are_small_and_their_digest_is_the_identity() -> None:
    files = sorted(WEIGHTS.glob("*.safetensors"))
    assert {file.stem for file in files} == {f"digits-{kind}" for kind in RECORDED}
    assert sum(file.stat().st_size for file in files) < 3_000_000
    for kind in RECORDED:
        content = (WEIGHTS / f"digits-{kind}.safetensors").read_bytes()
        expected = "sha256:" + hashlib.sha256(content).hexdigest()
        assert DigitsBackbone(kind).identity().weights == expected  # type: ignore[arg-type]
    assert DigitsBackbone("vit", pretrained=False).identity().weights == "none"


def test_a_rendering_that_other_code_kept_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another NumPy stands for other code: the pictures are made again, and kept beside."""
    made: list[str] = []

    def make() -> dict[str, Any]:
        made.append(data.metadata.version("numpy"))
        return {"x": np.array([len(made)])}

    monkeypatch.setenv("RIB_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "make", make)
    assert [int(data._load()["x"][0]) for _ in range(2)] == [1, 1]
    monkeypatch.setattr(data.metadata, "version", lambda name: "another")
    assert [int(data._load()["x"][0]) for _ in range(2)] == [2, 2]
    monkeypatch.undo()
    assert made[1] == "another"


@pytest.mark.slow
def test_the_script_still_makes_weights_that_are_about_as_good() -> None:
    """Other versions of torch may differ in the last bits, and so after thousands of steps.

    The quicker of the two nets; the others come from the same loop, see below.
    """
    classifier = pretrain.pretrain(pretrain.PRETRAININGS["conv"])
    shipped = DigitsBackbone("conv").build()
    for part in ("test", "v2", "c"):
        assert accuracy(classifier, part) == pytest.approx(accuracy(shipped, part), abs=0.08)
    assert accuracy(classifier, "test") >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("kind", pretrain.PRETRAININGS)
def test_the_script_trains_every_kind(kind: str) -> None:
    """Source: the initial weights; an epoch moves every parameter, and none out of all bounds."""
    how = pretrain.PRETRAININGS[kind]
    an_epoch = -(-how.images // pretrain.BATCH)
    trained = pretrain.pretrain(replace(how, updates=an_epoch, stop=0))
    before = dict(how.make().named_parameters())
    for name, parameter in trained.named_parameters():
        assert torch.isfinite(parameter).all() and not torch.equal(parameter, before[name]), name


def test_a_checkpoint_of_the_middle_is_one_of_the_whole_schedule() -> None:
    """Source: a learning rate that has not come down, as the torch schedule of all updates says."""
    rates = []
    step = torch.optim.lr_scheduler.OneCycleLR.step

    def watched(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        rates.append(self.get_last_lr()[0])

    how = replace(pretrain.PRETRAININGS["vit-at-300"], images=95, updates=40, stop=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.lr_scheduler.OneCycleLR, "step", watched)
        pretrain.pretrain(how)
    one = torch.nn.Parameter(torch.zeros(1))
    schedule = torch.optim.lr_scheduler.OneCycleLR(torch.optim.AdamW([one], lr=how.lr), how.lr, 40)
    expected = []
    rates = rates[1:]  # a schedule steps once when it is made
    for _ in range(8):
        schedule.optimizer.step()
        schedule.step()
        expected.append(schedule.get_last_lr()[0])
    assert rates == pytest.approx(expected)
