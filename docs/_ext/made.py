"""Fills `<!-- made: NAME -->` in a page with what a function makes, each time the page is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sphinx.application import Sphinx

#: Name → what makes its Markdown. Extensions add theirs.
MADE: dict[str, Callable[[], str]] = {}


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Fill all places of one page, and read it again next time: what fills it may have changed."""
    filled = re.sub(r"<!-- made: (\S+) -->", lambda match: MADE[match[1]](), source[0])
    if filled != source[0]:
        app.env.note_reread()
    source[0] = filled


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
