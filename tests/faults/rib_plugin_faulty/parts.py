"""Its parts: ordinary ones that do an act besides."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rib_harness import Classifier, Identity, ImageSet, Scores, Task, fingerprint_of
from rib_harness.files.members import Members
from rib_harness.testing import tiny_classifier, tiny_images
from rib_harness.testing.tiny import TINY
from rib_plugin_faulty.acts import perform, told

CLASSES = tuple(f"class {k}" for k in range(4))
MAP = tuple((k,) for k in range(4))

#: What `read` can give that is no picture.
GIVES: dict[str, Any] = {
    "gives-none": None,
    "gives-text": "a picture",
    "gives-array": np.zeros((8, 8, 3), np.uint8),
    "gives-bytes": b"\x89PNG",
    "gives-list": [[0, 0, 0]],
}


def _act(dataset: str, index: int, picture: Any) -> Any:
    act = told("FAULT_READ", dataset, index)
    if act in GIVES:
        return GIVES[act]
    if act == "gives-another":  # each time: nobody can know which is the right one
        return Image.fromarray(np.random.default_rng().integers(0, 255, (8, 8, 3), np.uint8))
    if act:
        perform(act)
    return picture


@dataclass(frozen=True)
class OfFiles:
    """Pictures CLASS/FILE in a folder or a tar below the data root.

    Args:
        file: its name.
    """

    file: str

    def open(self, root: Path | None) -> ImageSet:
        """Index it."""
        act = told("FAULT_OPEN", self.file.partition(".")[0])
        if act:
            perform(act)
        members = Members([(root or Path()) / self.file])
        order = sorted(range(len(members)), key=lambda i: members.names[i])
        names = [members.names[i] for i in order]
        labels = np.array([int(name.partition("/")[0]) for name in names], dtype=np.int64)
        group = np.array([""] * len(names))
        return ImageSet(
            labels=labels,
            classes=CLASSES,
            class_map=MAP,
            read=_Reader(members, order, self.file.partition(".")[0]),
            names=[members.where(i) for i in order],
            source=np.array(names),
            group=group,
            fingerprint=fingerprint_of(
                classes=CLASSES,
                class_map=MAP,
                labels=labels,
                group=group,
                contents=members.digests(order),
            ),
        )


@dataclass(frozen=True, eq=False)
class _Reader:
    members: Members
    order: list[int]
    dataset: str

    def __call__(self, index: int) -> Any:
        data = self.members.read(self.order[index])
        return _act(self.dataset, index, Image.open(io.BytesIO(data)))


@dataclass(frozen=True)
class Made:
    """Pictures from a seed."""

    def open(self, root: Path | None) -> ImageSet:
        """Make them."""
        act = told("FAULT_OPEN", "made")
        if act:
            perform(act)
        images = tiny_images(24, 4, seed=5)
        object.__setattr__(images, "read", _MadeReader(images.read))
        return images


@dataclass(frozen=True, eq=False)
class _MadeReader:
    read: Any

    def __call__(self, index: int) -> Any:
        return _act("made", index, self.read(index))


@dataclass(frozen=True)
class Small:
    """A small net, whose weights are the file that FAULT_WEIGHTS names."""

    def identity(self) -> Identity:
        """The digest of the file."""
        act = told("FAULT_BACKBONE", "identity")
        if act:
            perform(act)
        file = Path(os.environ["FAULT_WEIGHTS"])
        digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
        return Identity(digest, TINY, 4, (str(file),))

    def build(self) -> Classifier:
        """Build and load it."""
        from rib_harness import load_weights

        act = told("FAULT_BACKBONE", "build")
        if act:
            perform(act)
        classifier = tiny_classifier(4)
        load_weights(classifier, Path(os.environ["FAULT_WEIGHTS"]))
        return classifier.eval()


def _change(task: Task, what: str) -> None:
    """What belongs to the task, and to the next method's as well."""
    images = task.images
    if what == "labels":
        images.labels[:] = 0
    elif what in ("source", "group"):
        getattr(images, what)[:] = ""
    elif what == "names":
        images.names.reverse()  # type: ignore[attr-defined]
    elif what == "pretrained":
        for parameter in task.pretrained.parameters():
            parameter.data.zero_()
    elif what == "buffers":
        for buffer in task.pretrained.buffers():
            buffer.data.zero_()
    elif what == "train-mode":
        task.pretrained.train()
    elif what == "nan":
        for parameter in task.pretrained.parameters():
            parameter.data.fill_(float("nan"))
    else:
        raise ValueError(what)


CHANGES = ("labels", "source", "group", "names", "pretrained", "buffers", "train-mode", "nan")


@dataclass(frozen=True)
class Faulty:
    """Fine-tune, and do something else before or after.

    Args:
        act: what.
        late: whether after the fit.
        stages: how many fits, one after another.
    """

    act: str = "nothing"
    late: bool = False
    stages: int = 1

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters."""
        start = task.pretrained.copy()
        if not self.late:
            self.do(task)
        model = task.fit(start)
        for _ in range(1, self.stages):
            model = task.fit(model)
        if self.late:
            self.do(task)
        return model

    def do(self, task: Task) -> None:
        """Its act."""
        if self.act in CHANGES:
            _change(task, self.act)
        else:
            perform(self.act)


#: What a metric can give that is no number.
VALUES: dict[str, Any] = {
    "none": None,
    "text": "0.5",
    "nan": float("nan"),
    "inf": float("inf"),
    "true": True,
    "array": np.zeros(3),
    "complex": 1j,
}


def metric(scores: Scores) -> Any:
    """The accuracy, after an act."""
    act = told("FAULT_METRIC", "metric")
    if act in VALUES:
        return VALUES[act]
    if act in ("label", "confidence"):
        scores.column(act)[:] = 0
    elif act == "correct":
        scores.correct[:] = True
    elif act:
        perform(act)
    return float(scores.correct.mean())
