"""`rib-harness why`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rib_harness.cli.options import json_flag, store


@click.command("why")
@click.argument("step")
@store
@json_flag
def command(step: str, store: Path | None, as_json: bool) -> None:
    """Explain a step's key: every field in it, and which differ from the most similar step.

    STEP is a key, the beginning of one, or a step's id, as `plan` prints them.
    """
    from rib_harness.cli.tables import console, table
    from rib_harness.errors import RibError, nearest
    from rib_harness.store import Store

    path = store or Path("rib-store")
    steps = {key: (inputs, done) for key, inputs, done in Store(path).steps()}
    found = [k for k, (_, done) in steps.items() if k.startswith(step) or done["id"] == step]
    if not found:
        ids = [done["id"] for _, done in steps.values()]
        raise RibError(
            f"The store {path} has no finished step {step!r}.{nearest(step, ids)} "
            "`rib-harness plan` prints ids and keys."
        )
    for key in found:
        inputs, done = steps[key]
        fields = flat(inputs)
        others = {
            k: flat(i) for k, (i, _) in steps.items() if k != key and i["kind"] == inputs["kind"]
        }
        near = min(others, key=lambda k: len(differing(fields, others[k])), default=None)
        differ = differing(fields, others[near]) if near else []
        if as_json:
            document = {"format": "rib-harness.why/1", "key": key, "id": done["id"],
                        "inputs": inputs, "nearest": near, "differs": differ}  # fmt: skip
            click.echo(json.dumps(document, indent=1))
            continue
        click.echo(f"{done['id']}\nkey {key}\n")
        shown = table("field", "value")
        for name, value in fields.items():
            shown.add_row(name, str(value))
        console().print(shown)
        if near:
            click.echo(f"Nearest step: {steps[near][1]['id']} ({near[:8]}). It differs in:")
            for name in differ:
                click.echo(f"  {name}: {fields.get(name)} here, {others[near].get(name)} there")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` → `{"a.b": 1}`."""
    fields: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            fields.update(flat(value, f"{prefix}{name}."))
        else:
            fields[f"{prefix}{name}"] = value
    return fields


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the fields that are not the same."""
    return [n for n in {**one, **other} if one.get(n, ...) != other.get(n, ...)]
