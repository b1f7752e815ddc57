"""Makes our docstrings, which are read as Markdown elsewhere, what napoleon and Sphinx expect."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def mark_blocks(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Put `::` before an indented block, such as a formula, that follows an empty line.

    Sections such as `Args:` have no empty line before their indented lines.
    """
    marked: list[str] = []
    inside = False
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        if line.strip() and not indented:
            inside = line.rstrip().endswith(":") and lines[number + 1 : number + 2] != [""]
        if indented and not inside and marked and not marked[-1].strip():
            marked += ["::", ""]
            inside = True
        marked.append(line)
    # Napoleon takes "mRI: the mean" on the first line of a property for a type and its text.
    lines[:] = [""] * (what in ("attribute", "data", "property")) + marked


def draw_dashes(app: Sphinx, doctree: nodes.document) -> None:
    """The dash between a parameter and its text, which `smartquotes` would draw elsewhere too."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    # Before napoleon (500), which changes indents.
    app.connect("autodoc-process-docstring", mark_blocks, priority=400)
    app.connect("doctree-read", draw_dashes)
    return {"parallel_read_safe": True}
