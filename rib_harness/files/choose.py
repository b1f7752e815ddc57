"""Where a place holds several things that may be meant: the one whose name says so, or none."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rib_harness.errors import DataError, nearest


@dataclass(frozen=True)
class Wanted:
    """What is looked for among names, and by which it is known.

    Args:
        what: for messages, in the plural.
        option: the option that names one.
        plain: names that say it, in tiers: the only one of a tier is taken.
        likely: names that say it less plainly: beside them a plain one is no longer the only one.
    """

    what: str
    option: str
    plain: tuple[Collection[str], ...]
    likely: Collection[str] = ()

    def is_usual(self, name: str) -> bool:
        """Whether a name says it, plainly or less so."""
        return any(_stem(name) in tier for tier in (*self.plain, self.likely))


#: Names of columns, and suffixes of a WebDataset's files.
PICTURES = Wanted(
    "pictures",
    "image",
    ({"image", "img", "avif", "bmp", "gif", "jfif", "jp2", "jpeg", "jpg", "pgm", "png", "ppm",
      "tif", "tiff", "webp"},),
    {"images", "imgs", "photo", "photos", "photograph", "picture", "pictures", "pixels",
     "pixel_values"},
)  # fmt: skip

#: A WNID says what it stands for; a number does not.
LABELS = Wanted(
    "labels",
    "label",
    ({"wnid"}, {"label", "labels", "cls", "class", "target", "targets", "y", "synset"}),
)


def _stem(name: str) -> str:
    """`image` of `Image` and of `image.png`, as a WebDataset has it."""
    return name.casefold().partition(".")[0]


def choose(wanted: Wanted, names: Sequence[str], asked: str | None, where: str) -> str:
    """The one of `names` that is meant.

    Args:
        names: what may be meant, at least one.
        asked: the value of the option; None where it was not given.
        where: the place, for messages.

    Raises:
        DataError: the one that was asked for is not there, or no name is plain: lists all of them
            and the option.

    >>> choose(PICTURES, ["thumbnail", "image"], None, "x")
    'image'
    """
    listed = ", ".join(names)
    if asked is not None:
        if asked in names:
            return asked
        raise DataError(
            f"{where}: {wanted.option}={asked}: there are no {wanted.what} of this name."
            f"{nearest(asked, names)} It has: {listed}."
        )
    if len(names) == 1:
        return names[0]
    likely = [name for name in names if _stem(name) in wanted.likely]
    for tier in wanted.plain:
        plain = [name for name in names if _stem(name) in tier]
        if len(plain) == 1 and not likely:
            return plain[0]
        if plain:
            break
    example = names[0] if "," not in names[0] else f"({names[0]})"
    raise DataError(
        f"{where}: several may be the {wanted.what}: {listed}. Name one: {wanted.option}={example}"
    )


def told(wanted: Wanted, chosen: str, names: Sequence[str]) -> list[str]:
    """A note of what was chosen, where there was a choice."""
    others = [name for name in names if name != chosen]
    return [f"{wanted.what} from {chosen!r}, not from {', '.join(others)}"] if others else []
