"""Writes `components/KIND.md` from the specs and docstrings of the first-party plugins."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from made import MADE
from make_methods import described, options_table
from sphinx.application import Sphinx

from rib_harness.catalog import FIRST_PARTY, Catalog, Component, load_catalog
from rib_harness.options import argument_docs
from rib_harness.specs import Archive, LabelSpace, Variant

#: Kind → what stands above its page. Methods have a page of their own, `methods.md`.
PAGES = {
    "backbone": "A pretrained classifier, or a family of them: `--backbone NAME`. `timm:TAG` names "
    "a member of a family, and some members have a short name.",
    "dataset": "Labelled images, by the suite that uses them; `--data NAME:OPTION=VALUE` sets "
    "their options. How to get them: [data](../data.md).",
    "metric": "A number from what a run keeps: `rib-harness results --metric NAME`. A metric has "
    "no options. Its level says what it is computed from: the scores of one checkpoint on one "
    "dataset, the matrix of a run, the drift of features, or the distance of two datasets.",
    "suite": "The datasets and defaults that make one benchmark: `--suite NAME`.",
}
#: Not in the table of facts: they are elsewhere on the page, or of no use to a reader.
ELSEWHERE = ("name", "summary", "target", "arguments", "variants", "archives", "light", "family")


@cache
def catalog() -> Catalog:
    """What is installed, whatever the environment of the build blocks."""
    return load_catalog(environ={})


def components(kind: str) -> list[Component]:
    """Those of this repository, by id."""
    return [c for c in catalog().list(kind) if c.plugin.distribution in FIRST_PARTY]


def worded(name: str, value: Any) -> str:
    """A field's value for a cell of a table; nothing where the spec does not say."""
    if value in ("", None) or value in ((), {}):
        return ""
    if isinstance(value, LabelSpace):
        return f"`{value.name}`, {value.size:,} classes"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "range":
        low, high = ("−∞" if v < 0 and math.isinf(v) else "∞" if math.isinf(v) else f"{v:g}"
                     for v in value)  # fmt: skip
        return f"{low} … {high}"
    if isinstance(value, int) and name != "version":
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"`{key}` {item}" for key, item in value.items())
    if isinstance(value, tuple):
        return "; ".join(worded("", item) for item in value) if isinstance(
            value[0], tuple) else ", ".join(f"`{item}`" for item in value)  # fmt: skip
    return linked(str(value).replace("|", "\\|"))


def linked(text: str) -> str:
    """With links where a paper or an address is named."""
    text = re.sub(r"https?://[^\s,;)]+", r"<\g<0>>", text)
    return re.sub(r"\barXiv:(\d{4}\.\d{4,5})", r"[\g<0>](https://arxiv.org/abs/\1)", text)


def facts(component: Component) -> list[str]:
    """What its spec says."""
    plugin = component.plugin
    rows = {"id": f"`{component.id}`", "distribution": f"`{plugin.distribution}` {plugin.version}"}
    for field in fields(component.spec):
        if field.name not in ELSEWHERE:
            rows[field.name.replace("_", " ").replace("license", "licence")] = worded(
                field.name, getattr(component.spec, field.name)
            )
    return ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items() if v), ""]


def prose(doc: str) -> list[str]:
    """The docstring as Markdown, with its errors as a list."""
    text, source = described(doc)
    lines = []
    if errors := re.search(r"^Raises:\n(?:[ \t]+.*\n?|\n)+", text, re.MULTILINE):
        named = argument_docs(text.replace(errors[0], errors[0].replace("Raises:", "Args:", 1)))
        lines = [f"- `{name}`: {what}" for name, what in named.items()]
        lines = ["It raises:", "", *lines, ""]
        text = text.replace(errors[0].rstrip("\n"), "")
    return [text.strip(), "", *lines, *([f"Source: {linked(source)}", ""] if source else [])]


def members(variants: tuple[Variant, ...]) -> list[str]:
    """What is known of a family's members."""
    rows = ["| member | short name | pretraining | images | top-1 on `imagenet`, published |",
            "|---|---|---|---:|---:|"]  # fmt: skip
    for one in variants:
        alias, images = f"`{one.alias}`" if one.alias else "", f"{one.pretraining_images or '':,}"
        accuracy = f"{one.accuracy['imagenet']:.2f}" if "imagenet" in one.accuracy else ""
        rows.append(f"| `{one.tag}` | {alias} | {one.pretraining} | {images} | {accuracy} |")
    return [*rows, ""] if variants else []


def archives(files: tuple[Archive, ...]) -> list[str]:
    """The files in which it is published."""
    rows = ["| file | bytes | |", "|---|---:|---|"]
    for one in files:
        how = linked(one.urls[0]) if one.urls else linked(one.get)
        rows.append(f"| `{one.name}` | {worded('', one.size)} | {how} |")
    return [*rows, ""] if files else []


def section(component: Component) -> str:
    """One component."""
    spec, signature = component.spec, component.signature
    options = () if spec.kind == "metric" else signature.options
    lines = [f"## {spec.name}", ""]
    if spec.kind != "metric":  # where the docstring says the same
        lines += [spec.summary, ""]
    if signature.doc != spec.summary:
        lines += prose(signature.doc)
    lines += [*options_table(options), *facts(component)]
    lines += members(getattr(spec, "variants", ())) + archives(getattr(spec, "archives", ()))
    return "\n".join(lines)


def page(kind: str) -> str:
    """All components of one kind."""
    found = components(kind)
    rows = [f"| [{c.spec.name}](#{c.spec.name}) | `{c.id}` | {c.spec.summary} |" for c in found]
    table = [f"| {kind} | id | what it is |", "|---|---|---|", *rows, ""]
    head = [f"# {kind.capitalize()}s", "", PAGES[kind], ""]
    return "\n".join([*head, *table, *map(section, found)])


def overview() -> str:
    """How many of each kind there are, and where."""
    rows = ["| kind | | |", "|---|---:|---|"]
    for kind in ("backbone", "dataset", "method", "metric", "suite"):
        target = f"components/{kind}s.md" if kind in PAGES else f"{kind}s.md"
        names = ", ".join(f"`{c.spec.name}`" for c in components(kind))
        rows.append(f"| [{kind}s]({target}) | {len(components(kind))} | {names} |")
    return "\n".join(rows)


def write(app: Sphinx) -> None:
    """Write the pages, before Sphinx looks for sources; what is fresh stays untouched."""
    folder = Path(app.srcdir) / "components"
    folder.mkdir(exist_ok=True)
    for kind in PAGES:
        path, text = folder / f"{kind}s.md", page(kind)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", write)
    MADE["components"] = overview
    return {"parallel_read_safe": True}
