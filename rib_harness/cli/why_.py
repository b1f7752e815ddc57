"""`rib-harness why`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from rib_harness.cli.options import json_flag, run_options
from rib_harness.cli.say import echo

if TYPE_CHECKING:
    from rib_harness.config import RunConfig


@click.command("why")
@click.argument("step")
@run_options(train=True)
@json_flag
def command(config: RunConfig, step: str, as_json: bool) -> None:
    """Explain a step's key: every field in it, and which differ from the most similar step.

    STEP is a key, the beginning of one, or a step's id, as `plan` prints them. With the options of
    a run, --method among them, it is that run's step, done or not; else every finished one.
    """
    from rib_harness.cli.tables import console, table
    from rib_harness.errors import RibError, nearest
    from rib_harness.store import Store

    store = Store(config.store)
    done = {key: (str(found["id"]), inputs) for key, inputs, found in store.steps()}
    steps = dict(done)
    chosen: list[str] = []
    if config.method:  # the step of that run, done or not
        from rib_harness.runner import open_session

        planned = {s.key: (s.id, dict(s.inputs)) for s in open_session(config).plan.steps}
        steps |= planned
        chosen = _named(step, planned)
    chosen = chosen or _named(step, steps)
    if not chosen:
        ids = {name for name, _ in steps.values()}
        raise RibError(
            f"The store {config.store} has no finished step {step!r}.{nearest(step, ids)} "
            "`rib-harness plan` prints ids and keys; for a step that is not done yet, add the "
            "options of its run."
        )
    documents = []
    for key in chosen:
        name, inputs = steps[key]
        fields = flat(_with_checkpoint(inputs, steps))
        others = {
            k: flat(_with_checkpoint(i, steps))
            for k, (_, i) in done.items()
            if k != key and i["kind"] == inputs["kind"]
        }
        near = min(others, key=lambda k: len(differing(fields, others[k])), default=None)
        differ = differing(fields, others[near]) if near else []
        documents.append(
            {"format": "rib-harness.why/1", "key": key, "id": name, "done": key in done,
             "inputs": inputs, "nearest": near, "differs": differ}
        )  # fmt: skip
        if as_json:
            continue
        echo(f"{name}\nkey {key}{'' if key in done else ', not done yet'}\n")
        shown = table("field", "value")
        for field, value in fields.items():
            shown.add_row(field, str(value))
        console().print(shown)
        if near:
            echo(f"Nearest finished step: {done[near][0]} ({near[:8]}). It differs in:")
            for field in differ:
                here, there = fields.get(field), others[near].get(field)
                echo(f"  {field}: {here} here, {there} there")
    if as_json:
        echo(json.dumps(documents, indent=1))


def _named(step: str, steps: Mapping[str, tuple[str, Any]]) -> list[str]:
    """Keys that a user may mean; at least four characters of a key."""
    return [
        key
        for key, (name, _) in steps.items()
        if name == step or (len(step) >= 4 and key.startswith(step))
    ]


def _with_checkpoint(
    inputs: Mapping[str, Any], steps: Mapping[str, tuple[str, Any]]
) -> Mapping[str, Any]:
    """An evaluation's inputs with those of the fine-tuning behind it, which say more than a key."""
    made = steps.get(inputs.get("checkpoint", ""))
    return {**inputs, "checkpoint": made[1]} if made else inputs


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
