"""`rib-harness doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rib_harness.cli.options import json_flag, store
from rib_harness.cli.say import echo


@click.command("doctor")
@store
@json_flag
def command(store: Path | None, as_json: bool) -> None:
    """Check every file of a store against the digest that it was written with, weights too.

    Changes nothing. Exits with 1 if something is damaged; `rib-harness run` does such a step again.
    """
    from rib_harness.errors import RibError
    from rib_harness.store import Store

    path = store or Path("rib-store")
    if not path.exists():
        raise RibError(f"There is no store {path}: name one with --store, or run something first.")
    opened = Store(path)
    keys = opened.step_keys()
    whole = [key for key in keys if opened.whole(key) and opened.inputs(key) is not None]
    runs = opened.runs()
    damaged = {str(file): said for file, said in opened.damaged.items()}
    for run in runs:
        try:
            opened.config(run)
        except RibError as error:
            damaged[str(path / "configs" / f"{run['id']}.toml")] = str(error)
    # A folder without a done.json is half of a step: never a result, and no damage that is hidden.
    half = [key for key in keys if key not in whole and not any(key in file for file in damaged)]
    if as_json:
        document = {
            "format": "rib-harness.doctor/1",
            "steps": len(keys), "whole": len(whole), "half": half, "runs": len(runs),
            "damaged": [{"path": file, "said": said} for file, said in damaged.items()],
        }  # fmt: skip
        echo(json.dumps(document, indent=1))
    else:
        for said in damaged.values():
            echo(said)
        for key in half:
            echo(f"{opened.folder(key)} holds no finished step.")
        echo(f"{path}: {len(whole)} of {len(keys)} steps and {len(runs)} runs are whole.")
    if damaged:
        raise RibError(f"{len(damaged)} files of {path} do not verify, see above.")
