"""From an 8 × 8 handwritten digit to a 32 × 32 RGB picture, clean and in eight shifted ways.

Every function takes a picture of ink in 0 … 1 and a generator, and returns uint8 (H, W, 3).
NumPy and PIL only; the same generator gives the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

SIZE = 32

Ink = NDArray[np.float64]
Picture = NDArray[np.uint8]
Renderer = Callable[[Ink, np.random.Generator], Picture]


def upscale(digit: Ink) -> Ink:
    """(8, 8) in 0 … 16, as scikit-learn has it → (32, 32) in 0 … 1, with a margin."""
    small = Image.fromarray((digit * 255 / 16).astype(np.uint8))
    canvas = Image.new("L", (SIZE, SIZE))
    canvas.paste(small.resize((26, 26), Image.Resampling.BICUBIC), (3, 3))
    return np.asarray(canvas, dtype=np.float64) / 255


def moved(
    ink: Ink, *, angle: float = 0, scale: float = 1, shift: tuple[float, float] = (0, 0)
) -> Ink:
    """Rotate (degrees), scale and shift (pixels) about the middle."""
    c, s = np.cos(np.deg2rad(angle)) / scale, np.sin(np.deg2rad(angle)) / scale
    middle = (SIZE - 1) / 2
    x0 = middle - c * (middle + shift[0]) - s * (middle + shift[1])
    y0 = middle + s * (middle + shift[0]) - c * (middle + shift[1])
    picture = Image.fromarray((ink * 255).astype(np.uint8))
    return np.asarray(
        picture.transform(
            (SIZE, SIZE), Image.Transform.AFFINE, (c, s, x0, -s, c, y0), Image.Resampling.BICUBIC
        ),
        dtype=np.float64,
    ) / 255  # fmt: skip


def painted(ink: Ink, ink_colour: NDArray[np.float64], ground: NDArray[np.float64]) -> Picture:
    """Ink of a colour (3,) on a ground (3,) or (32, 32, 3), all in 0 … 1."""
    mixed = ink[..., None] * ink_colour + (1 - ink[..., None]) * ground
    return (np.clip(mixed, 0, 1) * 255).round().astype(np.uint8)


def filtered(ink: Ink, *filters: ImageFilter.Filter | type[ImageFilter.Filter]) -> Ink:
    """PIL filters, one after the other."""
    picture = Image.fromarray((np.clip(ink, 0, 1) * 255).astype(np.uint8))
    for one in filters:
        picture = picture.filter(one)
    return np.asarray(picture, dtype=np.float64) / 255


def outline(ink: Ink) -> Ink:
    """The border of the strokes: a thickened stroke less a thinned one."""
    return filtered(ink, ImageFilter.MaxFilter(3)) - filtered(ink, ImageFilter.MinFilter(3))


def texture(rng: np.random.Generator, coarse: int = 5) -> NDArray[np.float64]:
    """A smooth random colour field, (32, 32, 3) in 0 … 1."""
    small = Image.fromarray(rng.integers(0, 256, (coarse, coarse, 3), dtype=np.uint8))
    return np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float64) / 255


def clean(ink: Ink, rng: np.random.Generator) -> Picture:
    """In-distribution: light ink on a dark, slightly tinted ground."""
    light, dark = 0.85 + 0.15 * rng.random(3), 0.15 * rng.random(3)
    return painted(ink, light, dark)


def fresh(ink: Ink, rng: np.random.Generator) -> Picture:
    """A fresh sample, a little off: another pen, hand and light."""
    ink = moved(
        ink,
        angle=rng.uniform(-20, 20),
        scale=rng.uniform(0.65, 1.0),
        shift=tuple(rng.uniform(-4, 4, 2)),
    )
    gamma = rng.uniform(0.6, 2.5)
    return painted(ink**gamma, 0.5 + 0.5 * rng.random(3), 0.4 * rng.random(3))


def hard(ink: Ink, rng: np.random.Generator) -> Picture:
    """A candidate for the hard set: tilted, displaced, partly covered."""
    ink = moved(
        ink,
        angle=rng.uniform(-45, 45),
        scale=rng.uniform(0.6, 1.0),
        shift=tuple(rng.uniform(-5, 5, 2)),
    )
    ink = ink.copy()
    for top, left in rng.integers(6, 21, (2, 2)):
        ink[top : top + 5, left : left + 5] = rng.random()
    return painted(ink, 0.6 + 0.4 * rng.random(3), 0.25 * rng.random(3))


def rendition(ink: Ink, rng: np.random.Generator) -> Picture:
    """Art: neon outlines, stencils on a coloured sheet, mosaics."""
    style = rng.integers(3)
    if style == 0:
        return painted(filtered(outline(ink), ImageFilter.GaussianBlur(0.6)) * 1.4,
                       0.5 + 0.5 * rng.random(3), 0.2 * rng.random(3))  # fmt: skip
    if style == 1:
        hue = rng.random(3)
        return painted((ink > 0.45).astype(float), 0.3 * hue, 1 - 0.5 * hue)
    blocks = Image.fromarray((ink * 255).astype(np.uint8)).resize((11, 11), Image.Resampling.BOX)
    tiles = np.asarray(blocks.resize((SIZE, SIZE), Image.Resampling.NEAREST)) / 255
    return painted(tiles, 0.6 + 0.4 * rng.random(3), 0.6 * texture(rng, 8))


def sketch(ink: Ink, rng: np.random.Generator) -> Picture:
    """Contours in dark pencil on white paper."""
    lines = np.clip(outline(ink) * 1.2, 0, 1)
    paper = 0.93 + 0.05 * rng.standard_normal((SIZE, SIZE, 1)).clip(-1, 1)
    return painted(lines, np.full(3, 0.2), np.broadcast_to(paper, (SIZE, SIZE, 3)))


def cartoon(ink: Ink, rng: np.random.Generator) -> Picture:
    """Flat colours, few levels, black contours."""
    flat = np.floor(filtered(ink, ImageFilter.MedianFilter(3)) * 3) / 2
    colours = painted(np.clip(flat, 0, 1), 0.4 + 0.6 * rng.random(3), 0.15 + 0.55 * rng.random(3))
    edge = (outline(ink) > 0.55)[..., None]
    return np.where(edge, 0, colours).astype(np.uint8)


def drawing(ink: Ink, rng: np.random.Generator) -> Picture:
    """Hatched strokes of a coloured pencil on cream paper."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    hatch = 0.55 + 0.45 * np.sin((rows + columns) * 1.6 + rng.uniform(0, 6))
    grain = 0.12 * rng.standard_normal((SIZE, SIZE))
    tone = np.clip(ink * hatch + grain * ink, 0, 1)
    return painted(tone, 0.35 * rng.random(3), np.array([0.9, 0.86, 0.75]) - 0.25 * rng.random())


def scene(ink: Ink, rng: np.random.Generator) -> Picture:
    """An object in a room: turned, small, on clutter. 36 × 36: a red border of 2 pixels."""
    ink = moved(
        ink,
        angle=rng.uniform(-40, 40),
        scale=rng.uniform(0.7, 1.0),
        shift=tuple(rng.uniform(-3, 3, 2)),
    )
    inside = painted(ink, 0.75 + 0.25 * rng.random(3), 0.55 * texture(rng))
    bordered = np.zeros((SIZE + 4, SIZE + 4, 3), np.uint8)
    bordered[..., 0] = 255
    bordered[2:-2, 2:-2] = inside
    return bordered


def _noise(scale: tuple[float, ...]) -> Callable[[Picture, int, np.random.Generator], Picture]:
    def corrupt(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
        noise = rng.standard_normal(picture.shape) * 255 * scale[severity - 1]
        return np.clip(picture + noise, 0, 255).astype(np.uint8)

    return corrupt


def _impulse(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    hit = rng.random(picture.shape[:2]) < (0.05, 0.1, 0.16, 0.23, 0.32)[severity - 1]
    values = rng.integers(0, 2, picture.shape[:2])[..., None] * 255
    return np.where(hit[..., None], values, picture).astype(np.uint8)


def _blur(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    radius = (1.0, 1.5, 2.0, 2.6, 3.3)[severity - 1]
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def _motion(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    length = (3, 5, 7, 9, 12)[severity - 1]
    offsets = np.arange(length) - length // 2
    shifted = [np.roll(picture.astype(np.float64), (o, o), (0, 1)) for o in offsets]
    return np.mean(shifted, axis=0).astype(np.uint8)


def _fog(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    thick = (0.3, 0.42, 0.54, 0.66, 0.76)[severity - 1]
    veil = 160 + 90 * texture(rng, 4).mean(2, keepdims=True)
    return ((1 - thick) * picture + thick * veil).clip(0, 255).astype(np.uint8)


def _brightness(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    return np.clip(picture.astype(int) + (50, 85, 115, 145, 175)[severity - 1], 0, 255).astype(
        np.uint8
    )


def _contrast(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    factor = (0.5, 0.35, 0.25, 0.17, 0.1)[severity - 1]
    return (127 + (picture.astype(np.float64) - 127) * factor).astype(np.uint8)


def _pixelate(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    side = (14, 11, 9, 7, 6)[severity - 1]
    small = Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize((SIZE, SIZE), Image.Resampling.NEAREST))


#: Name → (picture, severity 1 … 5, generator) → picture. The families of ImageNet-C.
CORRUPTIONS: dict[str, Callable[[Picture, int, np.random.Generator], Picture]] = {
    "gaussian_noise": _noise((0.12, 0.2, 0.3, 0.42, 0.55)),
    "impulse_noise": _impulse,
    "defocus_blur": _blur,
    "motion_blur": _motion,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
}
