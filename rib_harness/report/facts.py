"""Where the numbers of a part come from, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rib_harness.report.data import Part
from rib_harness.results import describe_recipe


def provenance(part: Part) -> list[tuple[str, str]]:
    """What a reader must know of where the numbers come from: (what, text)."""
    runs, record = part.runs, part.record
    steps = [facts for run in runs for facts in run.provenance.values()]
    recipes = [describe_recipe(r.record["recipe"]) for r in runs if r.record["recipe"]]
    seeds = sorted({r.record["seed"] for r in runs if r.record["seed"] is not None})
    hardware = [
        f"{f.get('device_name') or f.get('device', '')}, {f.get('cores', '?')} cores of "
        f"{f.get('processor', '?')}, {f.get('platform', '?')}"
        for f in steps
    ]
    packages = [", ".join(f"{k} {v}" for k, v in f.get("packages", {}).items()) for f in steps]
    components = [
        f"{c['id']} ({c.get('distribution', '?')} {c.get('version', '?')})"
        for run in runs
        for c in run.record["components"]
    ]
    used = [line.arm.sources for line in part.lines]
    told = {
        "suite": [str(record["suite"])],
        "backbones": [_backbone(run.record) for run in runs],
        "sources": used or ["none: nothing was fine-tuned"],
        "seeds": [", ".join(map(str, seeds))] if seeds else [],
        "preset": [str(run.record["preset"]) for run in runs if run.record["recipe"]],
        "recipe": recipes,
        "limit": [f"{record['limit']} images a class"] if record["limit"] else [],
        "accepted licences": [x for run in runs for x in run.record.get("accepted_licenses", ())],
        "dataset options": [f"{name}: {text}" for name, text in record.get("data", {}).items()],
        "hardware": hardware,
        "packages": packages,
        "components": components,
        "computed": [f"{min(r.record['created'] for r in runs)[:10]} to "
                     f"{max(r.record['created'] for r in runs)[:10]}"],
    }  # fmt: skip
    return [(what, "; ".join(dict.fromkeys(texts))) for what, texts in told.items() if texts]


def _backbone(record: Mapping[str, Any]) -> str:
    weights = str(record["weights"])
    told = f"{record['backbone']} ({record.get('pretraining') or 'pretraining not said'}"
    return f"{told}, weights {weights.removeprefix('sha256:')[:12]})"
