"""Sends links between `docs/` and the repository's other pages to pages of the site.

A page is read on the site and in the repository. There, `../CONTRIBUTING.md` is right; here, the
page that includes it is, and what it includes has links of its own.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

#: File of the repository → page of the site.
PAGES = {
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
    "../CODE_OF_CONDUCT.md": "conduct.md",
    "../README.md": "index.md",
    "../SECURITY.md": "security.md",
    "../benchmarks/README.md": "benchmarks.md",
    "../registry/README.md": "registry.md",
}


def on_the_site(text: str, folder: str) -> str:
    """A text with its links as seen from `docs/`; one to a file that is no page stays as it is."""

    def seen(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1])).removeprefix("../docs/")
        inside = not target.startswith("../")
        return f"]({target if inside else PAGES.get(target, link[1])}{link[2] or ''})"

    return re.sub(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)", seen, text)


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """Rewrite the links of a page; those that are made, below `docs/`, need none."""
    if "/" not in page:
        source[0] = on_the_site(source[0], "")


def include(app: Sphinx, path: Path, page: str, source: list[str]) -> None:
    """Rewrite the links of a file that a page includes; its path is given from `docs/`."""
    source[0] = on_the_site(source[0], posixpath.dirname(Path(path).as_posix()))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", read)
    app.connect("include-read", include)
    return {"parallel_read_safe": True}
