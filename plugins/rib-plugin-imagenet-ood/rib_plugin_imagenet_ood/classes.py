"""The 1000 classes of ImageNet-1k and the subsets that its variants hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files


@dataclass(frozen=True)
class ImageNetClass:
    """One class.

    Args:
        id: 0 … 999, in the order of the WNIDs.
        wnid: WordNet id, which names the folders.
        sets: letters of the subsets that hold it: `a`, `r`.
        words: WordNet's words; not unique (two cranes, two maillots).
    """

    id: int
    wnid: str
    sets: str
    words: str


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """All 1000, by id."""
    text = files("rib_plugin_imagenet_ood").joinpath("classes.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")][1:]
    return tuple(ImageNetClass(i, *row) for i, row in enumerate(rows))
