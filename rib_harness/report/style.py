"""How figures look and how they become files: one place for colours, fonts and bytes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Width of every figure in inches: a text column of a paper, and still readable on a phone.
WIDTH = 4.2

#: The page swaps these for its own variables, so that figures follow light and dark.
INK, MUTED, RULE, PAPER = "#1a1d21", "#5c636b", "#d3d7db", "#fefefe"

#: Blue and orange differ for every kind of colour vision; so do all of these in this order
#: (after Okabe & Ito 2008, with the yellow left out: it is too pale on white).
SERIES = ("#0a66a8", "#c8560c", "#12806a", "#a8578f", "#8a6d00", "#4a97c9", "#6b6f76",
          "#7d3426")  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))

GAIN, LOSS = SERIES[0], SERIES[1]

_SETTINGS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same bytes everywhere
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "rib-harness",
    "text.parse_math": False,  # a dollar sign in a plugin's name is a dollar sign
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    "grid.color": RULE,
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), PAPER),
}


#: Hundredths of a point are more than a screen has.
_SIXTH = re.compile(r"(\.\d\d)\d+")


@contextmanager
def style() -> Iterator[None]:
    """Within it, matplotlib draws and saves in the harness's form, whatever the user's own is."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name in another script: the page shows it in the reader's own font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        parameters: Any = matplotlib.rcParams
        parameters.update(_SETTINGS)
        yield


def new(height: float, rows: int = 1, columns: int = 1, **settings: Any) -> tuple[Figure, Any]:
    """A figure of `WIDTH` × `height` inches and its axes (rows, columns); call it in `style()`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def series(k: int) -> dict[str, Any]:
    """Colour, marker and dashes of curve k: the three together tell many apart, also in grey."""
    turn = k // len(SERIES)
    return {
        "color": SERIES[k % len(SERIES)],
        # Points have no dashes: each turn of the colours begins with another marker.
        "marker": MARKERS[(k + turn) % len(MARKERS)],
        "linestyle": DASHES[turn % len(DASHES)],
    }


def legend_below(figure: Figure, grid: Any) -> None:
    """One legend for all panels, each label once, in as many columns as fit; none for one label."""
    handles: dict[str, Any] = {}
    for axis in grid.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if len(handles) > 1:
        columns = max(1, min(len(handles), int(62 / (max(map(len, handles)) + 6))))
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=columns
        )


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure for papers as PDF, SVG and PNG (300 dpi); the same figure, the same bytes.

    Args:
        stem: path without ending; a name with dots, as `wise-ft:alpha=0.5`, keeps them.

    Returns:
        the three files.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    dates: dict[str, dict[str, Any]] = {
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        "svg": {"Date": None, "Creator": None},
        "png": {"Software": None},
    }
    files = []
    with style():
        for ending, metadata in dates.items():
            file = stem.with_name(f"{stem.name}.{ending}")
            figure.savefig(file, format=ending, dpi=300, metadata=metadata)
            files.append(file)
    return files


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """A figure as an `<svg>` for the page: its colours are variables, its ids begin with `name`.

    Args:
        name: unique on the page; letters, digits and hyphens.
        title, description: what a screen reader says.
    """
    import io

    import matplotlib
    from markupsafe import escape

    out = io.StringIO()
    with style():
        matplotlib.rcParams["svg.hashsalt"] = name
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', head)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r'\bd="[^"]*"', lambda path: _SIXTH.sub(r"\1", path.group()), body)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    for variable, colour in _variables().items():
        body = re.sub(colour, f"var(--{variable})", body, flags=re.IGNORECASE)
    body = body.replace("'DejaVu Sans', sans-serif", "var(--sans)")
    view = box.group(1) if box else f"0 0 {72 * WIDTH} {72 * WIDTH}"
    width = 1.2 * float(view.split()[2]) / 72  # a little larger than in print where there is room
    return (
        f'<svg role="img" aria-labelledby="{name}-t {name}-d" viewBox="{view}"'
        f' style="max-width: {width:.2f}in"><title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">{escape(description)}</desc>{body}'
    )


def _variables() -> dict[str, str]:
    """CSS variable → the colour that it stands for."""
    named = {"ink": INK, "muted": MUTED, "rule": RULE, "paper": PAPER}
    return {**named, **{f"c{k}": colour for k, colour in enumerate(SERIES)}}
