"""`rib-harness show`."""

from __future__ import annotations

import json

import click

from rib_harness.cli.list_ import to_json
from rib_harness.cli.options import json_flag, no_plugin
from rib_harness.cli.say import echo


@click.command("show")
@click.argument("name", metavar="ID")
@json_flag
@no_plugin
def command(name: str, as_json: bool, no_plugin: tuple[str, ...]) -> None:
    """Show one component with its options: a short name, or plugin/name."""
    from rib_harness.catalog import load_catalog
    from rib_harness.errors import AmbiguousComponentError, UnknownComponentError, nearest
    from rib_harness.options import REQUIRED, Reference
    from rib_harness.registry import known_plugins
    from rib_harness.specs import KINDS, Variant

    wanted = Reference.parse(name).name
    catalog = load_catalog(block=no_plugin)
    everything = [c for kind in KINDS for c in catalog.list(kind)]
    found = [c for c in everything if wanted in (c.id, c.spec.name)]
    found = found or [
        family for family, variant in catalog.aliases()
        if wanted in (variant.alias, f"{family.plugin.name}/{variant.alias}")
    ]  # fmt: skip
    if not found:
        for kind in KINDS if "/" in wanted else ():
            catalog._explain_missing_plugin(kind, wanted)
        known = {c.id if "/" in wanted else c.spec.name for c in everything}
        here = {plugin.distribution for plugin in catalog.plugins}
        hints = (known_plugins().install_hint(kind, wanted, here) for kind in KINDS)
        away = next(filter(None, hints), "")
        raise UnknownComponentError(
            f"No component is called {wanted!r}.{'' if away else nearest(wanted, known)} "
            "See `rib-harness list methods`, and so on." + (f" It is {away}" if away else "")
        )
    if len({c.id for c in found}) > 1:
        listed = ", ".join(f"{c.id} ({c.plugin.distribution})" for c in found)
        raise AmbiguousComponentError(f"{wanted!r} is several components: {listed}. Use the id.")
    component = found[0]
    signature = component.signature
    if as_json:
        options = [
            {"name": o.name, "type": o.annotation, "doc": o.doc,
             "required": o.default == REQUIRED,
             "default": None if o.default == REQUIRED else o.default}
            for o in signature.options
        ]  # fmt: skip
        document = {**to_json(component), "options": options, "doc": signature.doc}
        echo(json.dumps(document, indent=1))
        return
    from rib_harness.cli.tables import console, table

    spec = {**to_json(component), "knobs": tuple(map(str, getattr(component.spec, "knobs", ())))}
    shown = table("", "")
    shown.show_header = False
    for field, value in spec.items():
        if value not in ("", (), {}, None) and field not in ("name", "archives", "variants"):
            shown.add_row(field, ", ".join(value) if isinstance(value, tuple) and
                          all(isinstance(v, str) for v in value) else str(value))  # fmt: skip
    console().print(shown)
    if getattr(component.spec, "archives", ()):
        echo(f"Its files: rib-harness data info {component.spec.name}")
    variants: tuple[Variant, ...] = getattr(component.spec, "variants", ())
    if variants:
        members = table("member", "pretraining", "images", "imagenet", right=("images", "imagenet"))
        for one in variants:
            members.add_row(
                f"{one.alias} = {one.tag}" if one.alias else one.tag,
                one.pretraining,
                f"{one.pretraining_images:,}" if one.pretraining_images else "",
                f"{one.accuracy['imagenet']:.2f}" if "imagenet" in one.accuracy else "–",
            )
        console().print(members)
    # The options' part of the docstring is the table below.
    before, _, after = signature.doc.partition("\nArgs:")
    source = [line for line in after.splitlines() if line.startswith("Source:")]
    if signature.doc:
        echo("\n".join([before.rstrip(), "", *source]))
    if signature.options:
        described = table("option", "type", "default", "what it is")
        for o in signature.options:
            default = "required" if o.default == REQUIRED else str(o.default)
            described.add_row(o.name, o.annotation, default, o.doc)
        console().print(described)
        if signature.extra:
            echo("Any other option is passed on.")
