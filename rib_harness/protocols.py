"""The contracts that components fulfil. Structural: nothing needs to inherit from these.

The heavy types are named here and imported by nobody until a step runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rib_harness.images import ImageSet, Preprocess

if TYPE_CHECKING:
    from rib_harness.engine.classifier import Classifier
    from rib_harness.engine.task import Task


@dataclass(frozen=True)
class Identity:
    """What makes a backbone's numbers its own, known before it is built.

    Args:
        weights: digest of the weights, e.g. `sha256:…`, or `hub:repo@revision`.
        preprocess: what its inputs go through.
        classes: number of logits.
        files: files that the answer rests on; when one changes it is asked again.
        has: parts that methods may require: those of `parts_of`, and `"text-tower"`. In no key.
        notes: what a user should know of how the weights were read, in sentences. In no key.
    """

    weights: str
    preprocess: Preprocess
    classes: int
    files: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "weights": self.weights,
            "preprocess": self.preprocess.to_json(),
            "classes": self.classes,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Identity:
        """The inverse of `to_json`, without files, parts and notes."""
        return cls(data["weights"], Preprocess.from_json(data["preprocess"]), data["classes"])


@runtime_checkable
class Backbone(Protocol):
    """A pretrained classifier. Its options are the parameters of the class.

    One that came with a text tower may also have `text_tower(self) -> TextTower`.
    """

    def identity(self) -> Identity:
        """Digest and preprocessing. Called when planning: cheap, and no torch where it can be."""
        ...

    def build(self) -> Classifier:
        """The classifier with its pretrained weights, on the CPU, in eval mode."""
        ...


@runtime_checkable
class Dataset(Protocol):
    """A labelled set of images. Its options are the parameters of the class.

    A dataset of files may also have `locate(root) -> str` (where it lies, opening nothing, or a
    `DataError`), `archives() -> tuple[Archive, ...]` (the files in which it is published, where
    options decide), `home: str` (its folder below a data root, for `data prepare`; else its name)
    and `make(root, progress)` (for `data make`).
    """

    def open(self, root: Path | None) -> ImageSet:
        """Index the images; decode none.

        Args:
            root: the folder that holds datasets (`--data-root`), if the user gave one.

        Raises:
            DataError: data is missing or wrong. Says which folder was looked for and how to get
                it; never downloads in silence.
        """
        ...


@runtime_checkable
class Method(Protocol):
    """A way to fine-tune. Its options are the parameters of the class.

    A method whose result has another architecture than the backbone also has
    `rebuild(self, pretrained: Classifier) -> Classifier`: an untrained classifier of that
    architecture, into which a checkpoint is loaded.
    """

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune on `task.images`, starting from `task.pretrained`, which it never modifies."""
        ...
