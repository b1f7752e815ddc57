"""Pictures of more than 8 bits, and whose a warning of Pillow is.

Expected values: the definition of a picture's range, in exact fractions; for 16-bit PNG the rule of
the PNG specification (section 12.4, "Sample depth rescaling").
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rib_harness import DataError, ImageSet, Preprocess
from rib_harness.engine.data import Augment
from rib_harness.files.verify import verify
from rib_harness.pictures import as_rgb, is_picture

RAMP = np.arange(0, 65_536, 257 * 5 + 100, dtype=np.uint16)[:48].reshape(6, 8)


def rescaled(values: Any, white: int) -> np.ndarray:
    """floor(value × 255 / white + ½), the PNG specification's rescaling."""
    exact = [int(Fraction(int(v) * 255, white) + Fraction(1, 2)) for v in np.ravel(values)]
    return np.array(exact, np.uint8).reshape(np.shape(values))


def through(form: str, picture: Image.Image, **options: Any) -> Image.Image:
    """A picture saved and opened again."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    opened = Image.open(io.BytesIO(buffer.getvalue()))
    opened.load()
    return opened


def pgm(white: int, values: Any) -> Image.Image:
    height, width = values.shape
    data = f"P5 {width} {height} {white}\n".encode() + values.astype(">u2").tobytes()
    return Image.open(io.BytesIO(data))


def tiff(values: Any, **tags: int) -> Image.Image:
    """Of 16 bits, little-endian, with these tags."""
    return through(
        "TIFF", Image.fromarray(values), tiffinfo={int(k[1:]): v for k, v in tags.items()}
    )


DEEP: dict[str, Callable[[], Image.Image]] = {
    "png": lambda: through("PNG", Image.fromarray(RAMP)),
    "tiff": lambda: through("TIFF", Image.fromarray(RAMP)),
    "pgm": lambda: pgm(65_535, RAMP),
    "I;16": lambda: Image.fromarray(RAMP),
    "I;16B": lambda: Image.frombytes("I;16B", (8, 6), RAMP.astype(">u2").tobytes()),
    "big-endian tiff": lambda: through(
        "TIFF", Image.frombytes("I;16B", (8, 6), RAMP.astype(">u2").tobytes())
    ),
    "I": lambda: Image.fromarray(RAMP.astype(np.int32)),
    "I in a tiff": lambda: through("TIFF", Image.fromarray(RAMP.astype(np.int32))),
}  # fmt: skip


@pytest.mark.parametrize("kind", DEEP)
def test_16_bits_are_scaled_and_not_cut_off(kind: str) -> None:
    picture = DEEP[kind]()
    assert picture.mode.startswith("I")
    expected = rescaled(RAMP, 65_535)
    came = np.asarray(as_rgb(picture))
    assert came.shape == (6, 8, 3)
    for channel in range(3):
        np.testing.assert_array_equal(came[..., channel], expected)
    pixels = Preprocess(size=6).pixels(picture)  # the middle six columns
    np.testing.assert_array_equal(pixels[0], expected[:, 1:7])


def test_half_intensity_is_grey_wherever_a_picture_becomes_rgb() -> None:
    grey = through("PNG", Image.new("I;16", (32, 32), 32_768))
    preprocess = Preprocess(size=16)
    means = [
        np.asarray(images_of(grey).image(0)).mean((0, 1)),
        np.asarray(images_of(grey).shown(0)).mean((0, 1)),
        preprocess.pixels(grey).mean((1, 2)),
        Augment("crop-flip", 0, 0)(grey, 0, preprocess).mean((1, 2)),
    ]
    for mean in means:
        np.testing.assert_allclose(mean, 127.5, atol=0.51)


def test_a_dark_pgm_of_16_bits_is_dark_and_not_taken_for_one_of_8() -> None:
    dark = np.full((4, 4), 200, np.uint16)
    np.testing.assert_array_equal(np.asarray(as_rgb(pgm(65_535, dark))), 1)  # 200/257 = 0.78


def test_a_pgm_of_12_bits_has_its_white_at_4095() -> None:
    values = np.array([[0, 2048, 4095]], np.uint16)
    np.testing.assert_array_equal(np.asarray(as_rgb(pgm(4095, values)))[0, :, 0], [0, 128, 255])


def test_a_tiff_whose_white_is_zero_is_turned_round() -> None:
    """TIFF 6.0, tag 262: 0 is WhiteIsZero. Pillow turns 8 bits round, and not 16."""
    picture = tiff(RAMP, t262=0)
    assert picture.mode == "I;16"
    np.testing.assert_array_equal(
        np.asarray(as_rgb(picture))[..., 0], rescaled(65_535 - RAMP, 65_535)
    )


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_values_up_to_255_stay_as_they_are(kind: Any) -> None:
    """As a dataset's code makes them from an array; Pillow's own conversion."""
    values = np.arange(256).reshape(16, 16)
    came = np.asarray(as_rgb(Image.fromarray(values.astype(kind))))
    np.testing.assert_array_equal(came[..., 1], values)


def test_floats_from_0_to_1_are_scaled() -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    came = np.asarray(as_rgb(through("TIFF", Image.fromarray(values))))
    np.testing.assert_array_equal(came[..., 2], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize(
    "values",
    [[-3.0, 200.0], [0.0, 300.0], [0.0, float("nan")], [0.0, float("inf")]],
)
def test_floats_without_a_known_white_are_refused_by_name(values: list[float]) -> None:
    picture = Image.fromarray(np.array([values], np.float32))
    with pytest.raises(DataError, match=r"odd\.png: .*mode F, go from .*scale them to 8 bits"):
        images_of(picture, "odd.png").image(0)


@pytest.mark.parametrize("values", [[-1, 10], [0, 70_000]])
def test_integers_without_a_known_white_are_refused_by_name(values: list[int]) -> None:
    picture = Image.fromarray(np.array([values], np.int32))
    with pytest.raises(DataError, match=r"odd\.png: .*mode I, go from .*scale them to 8 bits"):
        images_of(picture, "odd.png").image(0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pictures_of_8_bits_become_what_pillow_makes_of_them(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    np.testing.assert_array_equal(np.asarray(as_rgb(picture)), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("a.JPG", True), ("x/a.tif", True), ("a.TIFF", True), ("a.gif", True), ("a.jfif", True),
     ("a.pgm", True), ("a.jp2", True), ("e\u0301te\u0301 \u00a0.jpeg", True), ("._a.jpg", False),
     ("x/.a.png", False), ("Icon\r", False), ("a.jpg.txt", False), ("a.svg", False),
     ("a.eps", False), ("folder.ico", False), ("jpg", False)],
)  # fmt: skip
def test_which_names_are_of_pictures(name: str, is_one: bool) -> None:
    assert is_picture(name) == is_one


# --- warnings and errors -----------------------------------------------------------------------


def images_of(*pictures: Any, read: Callable[[int], Any] | None = None) -> ImageSet:
    """A set of pictures; a text among them is the name of the one before."""
    names = [one for one in pictures if isinstance(one, str)]
    shown = [one for one in pictures if not isinstance(one, str)]
    n = len(shown) or len(names)
    return ImageSet(
        labels=np.zeros(n, np.int64),
        classes=("a",),
        class_map=((0,),),
        read=read or (lambda i: shown[i]),
        names=names or [f"{i}.png" for i in range(n)],
        source=np.array([str(i) for i in range(n)]),
        group=np.full(n, ""),
        fingerprint="x",
    )


def warning(index: int) -> Image.Image:
    warnings.warn(f"Corrupt EXIF data {index}", stacklevel=1)
    return Image.new("RGB", (4, 4))


def test_a_warning_begins_with_the_pictures_name() -> None:
    with pytest.warns(UserWarning, match=r"^b\.jpg: Corrupt EXIF data 1$"):
        images_of("a.jpg", "b.jpg", read=warning).image(1)


def test_pillows_own_warning_begins_with_the_pictures_name() -> None:
    """Of a palette with transparency; the picture is read all the same."""
    palette = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("P")
    transparent = through("PNG", palette, transparency=bytes(range(16)))
    with pytest.warns(UserWarning, match=r"^x\.png: Palette images with Transparency"):
        assert images_of(transparent, "x.png").image(0).mode == "RGB"


def test_warnings_in_several_threads_have_the_name_of_their_own_picture() -> None:
    n = 64
    images = images_of(*(f"{i}.jpg" for i in range(n)), read=warning)
    before = warnings.showwarning
    with warnings.catch_warnings(record=True) as told, ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("always")
        list(pool.map(images.image, range(n)))
    assert sorted(str(one.message) for one in told) == sorted(
        f"{i}.jpg: Corrupt EXIF data {i}" for i in range(n)
    )
    assert warnings.showwarning is before


def test_a_warning_outside_of_a_picture_is_left_alone() -> None:
    with pytest.warns(UserWarning, match=r"^Corrupt EXIF data 7$"):
        warning(7)


def test_what_verify_looks_at_is_named_too() -> None:
    with pytest.warns(UserWarning) as told:
        verify(images_of("a.jpg", read=warning))
    assert {str(one.message) for one in told} == {"a.jpg: Corrupt EXIF data 0"}


def test_a_file_that_is_no_picture_is_told_without_an_address_in_memory() -> None:
    images = images_of("a.jpg", read=lambda _: Image.open(io.BytesIO(b"<html>")))
    with pytest.raises(DataError, match=r"^a\.jpg: .*cannot be decoded \(Pillow knows no such"):
        images.image(0)
    (problem,) = verify(images).problems
    assert "Pillow knows no such format" in problem


def test_a_picture_that_is_shown_is_named_as_well_when_it_cannot_be_read() -> None:
    """ObjectNet's are shown with their border, by another reader."""

    def gone(_: int) -> Image.Image:
        raise OSError("image file is truncated")

    images = replace(images_of(Image.new("RGB", (2, 2)), "a.png"), published=gone)
    with pytest.raises(DataError, match=r"a\.png: .*truncated"):
        images.shown(0)
