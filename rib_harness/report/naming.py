"""Names that plugins and users chose, as files and figures can carry them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def file_name(*texts: str) -> str:
    """A readable file name of any texts.

    >>> file_name("heatmap", "wise-ft:alpha=0.5 · vit")
    'heatmap-wise-ft-alpha=0.5-vit'
    """
    kept = ("".join(c if c.isalnum() or c in "=._" else "-" for c in one) for one in texts)
    whole = "-".join(piece for piece in "-".join(kept).split("-") if piece)
    # Most file systems take 255 bytes.
    return whole.lstrip(".-").encode()[:160].decode(errors="ignore") or "figure"


def unique(names: Iterable[str], length: int = 34) -> dict[str, str]:
    """Each name in one line of at most so many characters, no two alike.

    >>> unique(["a-long-name", "a-long-nose"], 7)
    {'a-long-name': 'a-long…', 'a-long-nose': 'a-lo… 2'}
    """
    made: dict[str, str] = {}
    for name in dict.fromkeys(names):
        flat = " ".join("".join(c if c.isprintable() else " " for c in name).split()) or "?"
        short, k = _cut(flat, length), 2
        while short in made.values():
            short, k = f"{_cut(flat, length - len(str(k)) - 1)} {k}", k + 1
        made[name] = short
    return made


def class_name(names: Sequence[str], k: int) -> str:
    """Of class k, or its number where the names are not known."""
    return names[k] if 0 <= k < len(names) else f"class {k}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
