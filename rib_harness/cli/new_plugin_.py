"""`rib-harness new-plugin`: a package that works as it is, from the templates of this one."""

from __future__ import annotations

import keyword
import re
import shlex
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from rib_harness.cli.options import UserPath, option
from rib_harness.cli.say import echo

#: Kind → folders of templates, of which later ones win. A suite comes with a dataset of its own.
LAYERS = {
    "backbone": ("common", "backbone"),
    "dataset": ("common", "dataset"),
    "method": ("common", "method"),
    "metric": ("common", "metric"),
    "suite": ("common", "dataset", "suite"),
}

#: Kind → what its example is.
SUMMARIES = {
    "backbone": "A small convolutional net with random weights.",
    "dataset": "Digits as on a display with seven segments, drawn.",
    "method": "Fine-tunes on a leash to the pretrained weights that tightens.",
    "metric": "The worst change of accuracy on another member.",
    "suite": "Drawn, sketched and artful digits.",
}

#: Kind → a command that shows it at work.
TRY = {
    "backbone": "rib-harness evaluate --backbone {name}",
    "dataset": "rib-harness show {name}",
    "method": "rib-harness run --method {name} --limit 5",
    "metric": "rib-harness run --method ft --limit 5 && rib-harness results --metric {name}",
    "suite": "rib-harness run --suite {name} --method ft",
}

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

#: Letters of a name: files and folders are called after it, and file systems have limits.
LONGEST = 60

#: Names that the templates use themselves.
_USED = {"Batch", "Classifier", "Clock", "ConfigError", "Identity", "Image", "ImageDraw",
         "ImageSet", "Path", "Preprocess", "Reader", "Task", "Tensor"}  # fmt: skip


@click.command("new-plugin")
@click.argument("name")
@option("--kind", type=click.Choice(list(LAYERS)), required=True, help="What it offers.")
@option("--path", type=UserPath(file_okay=False), default=Path(),
        help="Where to put its folder, rib-plugin-NAME.")  # fmt: skip
def command(name: str, kind: str, path: Path) -> None:
    """Write a package for a plugin of your own: it installs, passes its tests, and is listed.

    The example in it is small and real; the places to change are marked CHANGE.
    """
    from rib_harness.errors import ConfigError

    name = name.removeprefix("rib-plugin-")
    check_name(name, kind)
    folder = path / f"rib-plugin-{name}"
    texts = dict(render(name, kind))
    try:
        if folder.exists():
            raise ConfigError([f"{folder} exists already: choose another name, or another --path."])
        for inside, text in texts.items():
            file = folder / inside
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{folder} cannot be written: {error.strerror or error}."]) from error
    echo(f"Wrote {folder}, {len(texts)} files. The places to change are marked CHANGE. Next:")
    echo(f"  pip install -e {shlex.quote(f'{folder}[test]')}")
    echo(f"  python -m pytest {shlex.quote(str(folder))}")
    echo(f"  rib-harness check-plugin {name}")


def check_name(name: str, kind: str) -> None:
    """Raise unless it may be a plugin's name, and nothing that is installed has it.

    Raises:
        ConfigError: with the nearest name that may.
    """
    from rib_harness.catalog import load_catalog
    from rib_harness.errors import ConfigError

    if not _NAME.fullmatch(name):
        raise ConfigError(
            [
                f"expected lower-case words joined by hyphens, got {name!r}. "
                f"Did you mean {valid(name)!r}?"
            ]
        )
    if len(name) > LONGEST:
        raise ConfigError([f"expected a name of at most {LONGEST} letters, got {len(name)}."])
    catalog = load_catalog()
    for plugin in catalog.plugins:
        if plugin.name == name:
            raise ConfigError(
                [
                    f"the plugin name {name!r} is taken by {plugin.distribution} "
                    f"{plugin.version}. Did you mean {_free(name)!r}?"
                ]
            )
    for component in catalog.list(kind):
        if component.spec.name == name:
            raise ConfigError(
                [
                    f"a {kind} called {name!r} is in {component.plugin.distribution} already, and "
                    f"the short name would be ambiguous. Did you mean {_free(name)!r}?"
                ]
            )


def _free(name: str) -> str:
    """A name like one that is taken."""
    return f"{name}-2" if name.startswith("my-") else f"my-{name}"


def valid(name: str) -> str:
    """The nearest name that a plugin may have.

    >>> valid("rib-plugin-My_Method!")
    'my-method'
    """
    words = re.findall(r"[a-z0-9]+", name.lower())
    if words[:2] == ["rib", "plugin"]:
        words = words[2:]
    return re.sub(r"^[0-9-]+", "", "-".join(words))[:LONGEST].rstrip("-") or "my-plugin"


def render(name: str, kind: str) -> Iterator[tuple[str, str]]:
    """Path in the package → text.

    Args:
        name: of the plugin, and of its component.
        kind: of the component.
    """
    import jinja2

    package = f"rib_plugin_{name.replace('-', '_')}"
    dataset = f"{name}-segments" if kind == "suite" else name
    needs_digits = ["rib-plugin-digits>=0.1"] if kind == "suite" else []
    words = {
        "name": name,
        "kind": kind,
        "distribution": f"rib-plugin-{name}",
        "package": package,
        "classname": class_name(name, kind),
        "dataset_name": dataset,
        "dataset_class": class_name(dataset, "dataset"),
        "summary": SUMMARIES[kind],
        "dependencies": ["rib-harness>=0.1", *needs_digits],
        "try": TRY[kind].format(name=name),
    }
    environment = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    templates: dict[str, Traversable] = {}
    for layer in LAYERS[kind]:
        templates |= dict(_walk(files("rib_harness") / "templates" / "plugin" / layer))
    for inside, template in sorted(templates.items()):
        text = environment.from_string(template.read_text(encoding="utf-8")).render(words)
        yield inside.replace("PACKAGE", package), text


def class_name(name: str, kind: str) -> str:
    """CamelCase.

    >>> class_name("towards-the-start", "method"), class_name("task", "method")
    ('TowardsTheStart', 'TaskMethod')
    """
    camel = "".join(word.capitalize() for word in name.split("-"))
    return camel + kind.capitalize() if camel in _USED or keyword.iskeyword(camel) else camel


def _walk(folder: Traversable, above: str = "") -> Iterator[tuple[str, Traversable]]:
    """Path without `.j2` → template."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{above}{entry.name}/")
        elif entry.name.endswith(".j2"):
            yield above + entry.name.removesuffix(".j2"), entry
