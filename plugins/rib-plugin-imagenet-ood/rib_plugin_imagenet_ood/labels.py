"""What a form calls a class → the class's place in the set, and its ids in ImageNet-1k."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rib_harness import DataError
from rib_harness.errors import nearest
from rib_plugin_imagenet_ood.classes import imagenet_classes
from rib_plugin_imagenet_ood.forms import Rows
from rib_plugin_imagenet_ood.published import OBJECTNET, Published


@dataclass(frozen=True)
class SetClass:
    """One class of a set.

    Args:
        folder: name of its folder.
        ids: its ids in ImageNet-1k; ObjectNet has classes with several.
        words: for people; no key, since two classes are called crane and two maillot.
    """

    folder: str
    ids: tuple[int, ...]
    words: str

    @property
    def name(self) -> str:
        """For people: the folder tells classes of one name apart."""
        return f"{self.folder} {self.words}" if self.words else self.folder


@lru_cache(maxsize=16)
def classes_of(published: Published) -> tuple[SetClass, ...]:
    """The set's classes in their order: of the ids, or for ObjectNet of the folders' names."""
    if published.name == OBJECTNET.name:
        text = files("rib_plugin_imagenet_ood").joinpath("objectnet.tsv").read_text("utf-8")
        rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")][1:]
        return tuple(
            SetClass(folder, tuple(int(i) for i in ids.split("+")), words)
            for folder, words, ids in rows
        )
    return tuple(
        SetClass(str(c.id) if published.numbered else c.wnid, (c.id,),
                 f"{c.wnid} {c.words}" if published.numbered else c.words)
        for c in imagenet_classes()
        if published.subset in c.sets
    )  # fmt: skip


def labels_of(published: Published, rows: Rows) -> NDArray[np.int64]:
    """(N,) the class of each image; −1 where it is of a class that the set does not use.

    Raises:
        DataError: a class that is none of the set's, or numbers in an unknown order.
    """
    classes = classes_of(published)
    if isinstance(rows.classes[0], int):
        return _from_numbers(published, rows, classes)
    named: Sequence[str] = [str(one) for one in rows.classes]
    by_folder = {one.folder: i for i, one in enumerate(classes)}
    if published.name == OBJECTNET.name:
        # 200 of its 313 classes are not ImageNet's.
        return np.array([by_folder.get(name, -1) for name in named], dtype=np.int64)
    if len(set(named)) == 1 and named[0] not in by_folder | _by_wnid(classes):
        named = _of_flat_files(published, rows) or named
    places = (by_folder, _by_wnid(classes))
    place = next((one for one in places if all(name in one for name in named)), by_folder)
    wrong = next((i for i, name in enumerate(named) if name not in place), None)
    if wrong is not None:
        raise DataError(
            f"{rows.source.where(wrong)}: {named[wrong]!r} is not a class of this set."
            f"{nearest(named[wrong], place)} Expected folders such as "
            f"{', '.join(one.folder for one in classes[:3])}; move other folders away."
        )
    return np.array([place[name] for name in named], dtype=np.int64)


def _by_wnid(classes: tuple[SetClass, ...]) -> dict[str, int]:
    """WNID → place, for the classes of one id: V2 was published with these folders as well."""
    known = imagenet_classes()
    return {known[one.ids[0]].wnid: i for i, one in enumerate(classes) if len(one.ids) == 1}


def _of_flat_files(published: Published, rows: Rows) -> list[str]:
    """Classes of files that lie in no folders of classes; none where nothing says them."""
    from rib_plugin_imagenet_ood.devkit import is_flat_val, wnids_of_names, wnids_of_val

    if wnids := wnids_of_names(rows.files):
        return wnids
    if published.name == "imagenet" and is_flat_val(rows.files):
        return wnids_of_val(rows.files, Path(rows.location), rows.answers)
    if not any(rows.classes):
        raise DataError(f"{rows.location}: its files do not lie in folders of classes.")
    return []


def _from_numbers(
    published: Published, rows: Rows, classes: tuple[SetClass, ...]
) -> NDArray[np.int64]:
    """Numbers are WNIDs' ranks in the set (0…199), or ids of the label space (0…999)."""
    numbers = np.array(rows.classes, dtype=np.int64)
    if rows.names:
        return _from_names(published, rows, classes)[numbers]
    if numbers.min() < 0:
        raise DataError(f"{rows.location}: a label of {numbers.min()}: expected 0 and more.")
    place = {i: k for k, one in enumerate(classes) for i in one.ids}
    unknown = sorted(set(numbers.tolist()) - set(place))
    if numbers.max() < len(classes):
        # A whole set cannot be meant both ways: the rank 0 is no id of a subset.
        if not unknown and any(one.ids != (rank,) for rank, one in enumerate(classes)):
            raise DataError(
                f"{rows.location}: its labels ({', '.join(map(str, sorted(set(numbers))[:5]))}, …) "
                f"may be ranks below {len(classes)} or ids of ImageNet-1k, and it does not say "
                "which. Take a whole copy, or one whose labels have names."
            )
        return numbers
    if unknown:
        raise DataError(
            f"{rows.location}: the label {unknown[0]} is neither below {len(classes)} nor an id "
            f"of one of the set's {len(classes)} classes."
        )
    return np.array([place[int(number)] for number in numbers], dtype=np.int64)


def _from_names(
    published: Published, rows: Rows, classes: tuple[SetClass, ...]
) -> NDArray[np.int64]:
    """Number → place, where the form says what its numbers stand for."""
    by_folder = {one.folder: i for i, one in enumerate(classes)}
    by_id = {str(one.ids[0]): i for i, one in enumerate(classes) if len(one.ids) == 1}
    if published.name == OBJECTNET.name and set(by_folder) <= set(rows.names):
        return np.array([by_folder.get(name, -1) for name in rows.names], dtype=np.int64)
    for table in (by_folder, by_id, _by_wnid(classes)):
        if all(name in table for name in rows.names):
            return np.array([table[name] for name in rows.names], dtype=np.int64)
    if len(rows.names) != len(classes):
        raise DataError(
            f"{rows.location} has {len(rows.names)} class names such as {rows.names[0]!r}; "
            f"expected WNIDs, or the names of the set's {len(classes)} classes in their order."
        )
    # Words are no key (two cranes), but they show whether the order is that of the ids.
    foreign = [
        f"{name!r} where {one.words!r} is expected"
        for name, one in zip(rows.names, classes, strict=True)
        if not _words(name) & _words(one.words)
    ]
    if len(foreign) > len(classes) // 5:
        raise DataError(
            f"{rows.location}: its class names are in another order than the set's: {foreign[0]}."
        )
    return np.arange(len(classes))


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{3,}", text.lower().replace("_", " ")))
