"""Text of plugins, stores and files, made harmless for what shows it: a terminal, Markdown, CSV.

LaTeX and BibTeX: `citations.latex_escaped`; the page escapes by itself, and JSON always does.
"""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from typing import Any

#: What begins another element of Markdown, or HTML, inside a line.
_MARKDOWN = re.compile(r"[\\`|]|(?<=\])\(")
_HTML = re.compile(r"<(?=[A-Za-z/!?])")


def printable(text: str) -> str:
    """The text with U+FFFD for what is no printable character; lines, tabs and spaces stay.

    Escape sequences, which a terminal would obey, are none then, nor are characters without a
    width, or such that turn the direction of what follows. A byte of a file's name that is no
    character stays known: `\\udce9`.

    >>> printable("a\\x1b[31m\\nb")
    'a\ufffd[31m\\nb'
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    kind = unicodedata.category(character)
    if character.isprintable() or character in "\n\t" or kind == "Zs":
        return character
    return f"\\u{ord(character):04x}" if kind == "Cs" else "\ufffd"


def in_markdown(text: str) -> str:
    """The text on one line, as plain text in a line, a cell or an item of Markdown.

    >>> in_markdown("a | b <img src=x> [c](d)")
    'a \\\\| b &lt;img src=x> [c]\\\\(d)'
    """
    line = " ".join(printable(text).split())
    return _HTML.sub("&lt;", _MARKDOWN.sub(r"\\\g<0>", line))


def in_csv(value: Any) -> Any:
    """A cell: a text that a spreadsheet would take for a formula begins with an apostrophe.

    Nor can it begin another row: what is not printable is replaced.

    >>> [in_csv(one) for one in ("=1+1", "-0.5", -0.5, "lwf")]
    ["'=1+1", '-0.5', -0.5, 'lwf']
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    with suppress(ValueError):
        float(text)
        return text
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text
