"""What Pillow reads: by which names, how it becomes RGB, and whose its warnings are."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rib_harness.guard import told

#: Pillow's formats of photographs. The others are icons and films, or run a program (EPS).
FORMATS = frozenset(
    {"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF",
     "WEBP"}
)  # fmt: skip

# TIFF 6.0's tags that Pillow heeds at 8 bits a pixel only.
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


@lru_cache(maxsize=1)
def _suffixes() -> tuple[str, ...]:
    Image.init()
    return tuple(s for s, form in Image.registered_extensions().items() if form in FORMATS)


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture that Pillow reads; hidden files are none.

    >>> is_picture("n01440764/a.JFIF"), is_picture("._a.jpg"), is_picture("Icon\\r")
    (True, False, False)
    """
    file = name.rpartition("/")[2].lower()
    return file.endswith(_suffixes()) and not file.startswith(".")


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture in RGB; more than 8 bits are scaled, where Pillow cuts off all above 255.

    The modes of 16 bits have their white at 65,535 (TIFF may have fewer bits). `I` and `F` have
    none of their own: of a PNG, PGM or PFM it is the format's, else the largest value tells: in
    `F` up to 1 is 0 … 1, in both up to 255 is 0 … 255 as ever, in `I` up to 65,535 is 16 bits.

    Raises:
        ValueError: values that fit none of these.
    """
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture.convert("RGB")
    values = np.asarray(picture).astype(np.float64)
    white = _white(picture, values)
    if white == 255:
        return picture.convert("RGB")
    if _tag(picture, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    scaled = np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")


def _white(picture: Image.Image, values: NDArray[np.float64]) -> int:
    """The value that is white."""
    if picture.mode.startswith("I;16"):
        bits = _tag(picture, _BITS)
        return 2 ** (bits[0] if bits else 16) - 1
    if picture.mode == "I" and picture.format in ("PNG", "PPM"):  # scaled to 16 bits by Pillow
        return 65_535
    least, most = float(values.min()), float(values.max())
    for white in (1, 255) if picture.mode == "F" else (255, 65_535):
        if least >= 0 and most <= white:
            return white
    raise ValueError(
        f"its values, in mode {picture.mode}, go from {least:g} to {most:g}, and it does not say "
        "which is white: scale them to 8 bits"
    )


def _tag(picture: Image.Image, number: int) -> Any:
    return getattr(picture, "tag_v2", {}).get(number)


def undecodable(name: str, error: BaseException) -> str:
    """What to say of a picture that cannot be decoded."""
    why: object = error if isinstance(error, Exception) else told(error)
    if isinstance(error, UnidentifiedImageError):
        why = "Pillow knows no such format"
    return f"{name}: this image cannot be decoded ({why}). Replace it with a whole copy."


#: Whose picture is being read: a warning of Pillow does not say it.
_reading: ContextVar[str] = ContextVar("reading", default="")

#: Blocks of several threads overlap: the first puts `_show` in, the last takes it out.
_lock, _depth = threading.Lock(), 0
_before: Any = warnings.showwarning


@contextmanager
def named(name: str) -> Iterator[None]:
    """While the block runs, this thread's warnings begin with a picture's name.

    `warnings.catch_warnings` would do it for one thread only: it changes what all have.
    """
    token = _reading.set(name)
    _begin()
    try:
        yield
    finally:
        _end()
        _reading.reset(token)


def _begin() -> None:
    global _depth, _before
    with _lock:
        _depth += 1
        if _depth == 1 and warnings.showwarning is not _show:
            _before, warnings.showwarning = warnings.showwarning, _show


def _end() -> None:
    global _depth
    with _lock:
        _depth -= 1
        if _depth == 0 and warnings.showwarning is _show:
            warnings.showwarning = _before


def _show(message: Any, category: Any, *where: Any, **more: Any) -> None:
    if name := _reading.get():
        message = category(f"{name}: {message}")
    _before(message, category, *where, **more)
