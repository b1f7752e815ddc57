"""One pass for many checkpoints. Expected values: scikit-learn, and plain torch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, top_k_accuracy_score
from torch import Tensor, nn

from rib_harness import Classifier, DataError, Scores
from rib_harness.engine import evaluate as module
from rib_harness.engine.data import Pixels
from rib_harness.engine.evaluate import evaluate, score
from rib_harness.scores import SCORES, mean_over_groups
from rib_harness.testing import TINY, tiny_classifier, tiny_images

CPU = torch.device("cpu")


def tables(
    classifiers: dict[str, Classifier], n: int = 53, batch: int = 16, workers: int = 1
) -> dict[str, pa.Table]:
    pixels = Pixels(tiny_images(n), TINY, workers=workers, pack=False)
    made, failed = evaluate(classifiers, pixels, device=CPU, batch_size=batch)
    assert not failed
    return made


def close(one: pa.Table, two: pa.Table) -> None:
    for name in ("index", "label", "prediction", "top5", "group", "source"):
        assert one.column(name).equals(two.column(name)), name
    for name in ("confidence", "nll", "brier"):
        a, b = one.column(name).to_numpy(), two.column(name).to_numpy()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_rows_equal_scikit_learn() -> None:
    logits = torch.randn(200, 7, dtype=torch.float64)
    labels = torch.randint(0, 7, (200,))
    p = logits.softmax(1).numpy()
    rows = {name: column.numpy() for name, column in score(logits, labels).items()}
    everything = list(range(7))
    assert rows["nll"].mean() == pytest.approx(log_loss(labels, p, labels=everything))
    assert (rows["prediction"] == labels.numpy()).mean() == accuracy_score(labels, p.argmax(1))
    assert rows["top5"].mean() == top_k_accuracy_score(labels, p, k=5, labels=everything)
    np.testing.assert_allclose(rows["confidence"], p.max(1))
    oracle = brier_score_loss(labels, p, labels=everything, scale_by_half=False)
    assert rows["brier"].mean() == pytest.approx(oracle)


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (7, 4), (53, 2), (1000, 1)])
def test_batch_size_and_workers_change_nothing(batch: int, workers: int) -> None:
    classifiers = {"a": tiny_classifier()}
    close(tables(classifiers, batch=batch, workers=workers)["a"], tables(classifiers)["a"])


def test_sharing_the_pass_changes_nothing_to_the_bit() -> None:
    a, b, c = tiny_classifier(seed=1), tiny_classifier(seed=2), tiny_classifier(seed=1)
    nn.init.ones_(c.head.weight)  # the encoder of a, another head
    together = tables({"a": a, "b": b, "c": c})
    for name, classifier in (("a", a), ("b", b), ("c", c)):
        assert tables({name: classifier})[name].equals(together[name])


def test_checkpoints_with_one_encoder_share_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    a, c = tiny_classifier(seed=1), tiny_classifier(seed=1)
    nn.init.ones_(c.head.weight)
    passes = 0
    original = Classifier.features

    def counted(self: Classifier, images: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return original(self, images)

    monkeypatch.setattr(Classifier, "features", counted)
    tables({"a": a, "c": c}, n=32, batch=16)
    assert passes == 2 + 2  # two batches, and once to see that the two encoders agree


def test_an_equal_state_in_another_encoder_is_not_shared() -> None:
    """The activation has no weights: only the forward pass tells the two apart."""
    a, b = tiny_classifier(batchnorm=False), tiny_classifier(batchnorm=False)
    b.encoder[1] = nn.Tanh()
    together = tables({"a": a, "b": b})
    assert tables({"b": b})["b"].equals(together["b"])
    assert not together["a"].equals(together["b"])


def test_short_memory_halves_the_batch_and_changes_no_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = tables({"a": tiny_classifier()})["a"]
    original = Classifier.features

    def small_memory(self: Classifier, images: Tensor) -> Tensor:
        if len(images) > 5:
            raise torch.OutOfMemoryError("simulated")
        return original(self, images)

    monkeypatch.setattr(Classifier, "features", small_memory)
    close(tables({"a": tiny_classifier()})["a"], expected)


def test_logits_that_are_not_finite_are_diverged_and_never_a_number() -> None:
    good, bad = tiny_classifier(), tiny_classifier()
    nn.init.constant_(bad.head.bias, float("nan"))
    pixels = Pixels(tiny_images(20), TINY, pack=False)
    made, failed = evaluate({"good": good, "bad": bad}, pixels, device=CPU)
    assert list(made) == ["good"]
    assert "DIVERGED" in str(failed["bad"])


def test_an_image_that_is_scored_twice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def padded(n: int, size: int) -> list[np.ndarray]:
        return [np.array([*range(n - 1), 0])]

    monkeypatch.setattr(module, "in_order", padded)
    with pytest.raises(DataError, match="expected each of 20 images once, got 20 rows with 19"):
        tables({"a": tiny_classifier()}, n=20)


def test_a_dropped_image_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "in_order", lambda n, size: [np.arange(n - 1)])
    with pytest.raises(DataError, match="expected each of 20 images once, got 19 rows"):
        tables({"a": tiny_classifier()}, n=20)


def test_several_ids_score_by_their_maximum() -> None:
    """Against a loop over classes in plain torch."""
    class_map = [(k,) for k in range(8)] + [(8, 10, 11), (9, 12)]
    images = tiny_images(60, class_map=class_map)
    model = tiny_classifier(classes=13)
    pixels = Pixels(images, TINY, pack=False)
    made, _ = evaluate({"a": model}, pixels, device=CPU)
    mean, std = torch.tensor(TINY.mean), torch.tensor(TINY.std)
    for i in range(60):
        x = torch.from_numpy(np.asarray(images.image(i)).copy()).float() / 255
        with torch.no_grad():
            z = model(((x - mean) / std).permute(2, 0, 1)[None])[0]
        best = max(range(10), key=lambda k: max(float(z[j]) for j in class_map[k]))
        assert made["a"].column("prediction")[i].as_py() == best


def test_a_scores_file_is_read_back(tmp_path: object) -> None:
    made = Scores(tables({"a": tiny_classifier()})["a"])
    assert made.table.schema.equals(SCORES)
    assert made.summary()["n"] == 53
    assert made.summary()["correct"] == int(made.correct.sum())
    assert made.summary()["top1"] == pytest.approx(100 * made.correct.mean())


def test_groups_are_averaged_by_corruption_then_over_corruptions() -> None:
    """Worked by hand: fog (1/2 + 1/4) / 2 = 3/8, snow 1 → 11/16."""
    counts = {"fog/1": [1, 2], "fog/2": [1, 4], "snow/1": [7, 7]}
    assert mean_over_groups(counts) == pytest.approx(11 / 16)
