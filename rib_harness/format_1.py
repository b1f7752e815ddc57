"""Stores of format 1, which kept no digests: what can be known of their steps all the same.

`Store` asks here while such a store has not been written to; then every step has its digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rib_harness.errors import RibError
from rib_harness.files.digest import file_digest
from rib_harness.store import FEATURES, SCORES, WEIGHTS, DamagedFileError, key_of, read_json


def contradiction(folder: Path, record: Mapping[str, Any]) -> str:
    """What is wrong with a step, as far as it can be known without digests; empty if nothing is.

    Args:
        folder: the step's.
        record: what its `done.json` says.
    """
    artefacts = {"evaluate": SCORES, "finetune": WEIGHTS, "features": FEATURES}
    made = artefacts.get(str(record.get("kind")))
    try:
        if key_of(read_json(folder / "step.json")) != folder.name:
            return "step.json is of another step"
        if made is not None and not (folder / made).is_file():
            return f"{made} is not there"
        if made == SCORES:
            from rib_harness.scores import Scores

            scored = Scores.read(folder / SCORES).summary()
            if any(scored[name] != record["summary"][name] for name in scored):
                return f"{SCORES} and done.json do not say the same"
        elif made is not None:
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(folder / made, "numpy"):
                    pass
            except SafetensorError:
                return f"{made} is cut short or no such file"
    except DamagedFileError as error:
        return f"step.json: {error}"
    except (RibError, KeyError, TypeError):
        return f"{made} cannot be read, or done.json lacks a field"
    return ""


def made_from(folder: Path) -> dict[str, str]:
    """Key of each checkpoint that a step was made from → the digest of its weights now.

    Raises:
        DamagedFileError: its `step.json` cannot be read.
    """
    inputs = read_json(folder / "step.json")
    keys = {inputs.get("checkpoint", ""), *inputs.get("needs", {}).values()} - {""}
    weights = {key: folder.with_name(key) / WEIGHTS for key in sorted(keys)}
    return {key: file_digest(file) for key, file in weights.items() if file.is_file()}
