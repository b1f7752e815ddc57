"""The page of the command line: verbs in their own order, variables in one sentence."""

from __future__ import annotations

from typing import Any

from made import MADE
from sphinx.application import Sphinx

from rib_harness.cli import VERBS

#: Spelled as sphinx-click 6.2 emits it; the event that it registers is spelled otherwise.
ENVIRONMENT = "sphinx-click-process-envars"


def leave_out(app: Sphinx, context: object, lines: list[str]) -> None:
    """The page says once how every option's variable is called."""
    lines.clear()


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    MADE["verbs"] = lambda: ", ".join(VERBS)
    if ENVIRONMENT not in app.events.events:
        app.add_event(ENVIRONMENT)
    app.connect(ENVIRONMENT, leave_out)
    return {"parallel_read_safe": True}
