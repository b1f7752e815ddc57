"""Inputs that could mean two things, and inputs as people have them: `shared/cases`."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from judge import OtherError, SkippedError, verdict
from world import World

SHARED = Path(os.environ.get("RIB_SHARED", Path(__file__).parents[3] / "shared"))

#: Case → dataset, where it lies, labels, and the colour of each picture's middle; None: refused,
#: and the message names these.
DATASETS: dict[str, tuple[str, str, list[int], list[str]]] = {
    "two image columns": ("imagenet", "two-image-columns", [0], ["blue"]),
    "a shard with masks": ("imagenet", "shard-with-masks", [0], ["blue"]),
    "plain Parquet": ("imagenet", "plain-parquet", [0], ["blue"]),
    "messy folders": ("imagenet", "messy-folders", [0, 1], ["blue", "red"]),
    "valid names": ("imagenet", "valid-names", [0, 1], ["blue", "blue"]),
    "V2 by WNID": ("imagenet-v2", "v2-by-wnid", [0, 1], ["blue", "blue"]),
    "flat names": ("imagenet", "flat-val-names", [0], ["blue"]),
    "flat, Kaggle": ("imagenet", "flat-val-kaggle", [0], ["blue"]),
    "backslashes": ("imagenet", "backslashes.zip", [0], ["blue"]),
}

#: Checkpoint → None: every value is 1; else the message names these.
CHECKPOINTS: dict[str, tuple[str, ...] | None] = {
    "data-parallel.pth": None,
    "lightning.ckpt": None,
    "compiled.pth": None,
    "tutorial.pth": None,
    "UPPER.SAFETENSORS": None,
    "raw-and-ema.pth": ("state_dict_ema", "weights_key"),
    "raw-and-ema-2.pth": ("model_ema", "weights_key"),
    "nan.safetensors": ("weight", "finite", "NaN", "nan"),
    "empty.pth": ("empty",),
    "empty.safetensors": ("empty",),
    "pointer.pth": ("LFS",),
    "page.pth": ("page", "HTML"),
}


def cases(folder: Path) -> Path:
    """Make the inputs, once a campaign.

    Raises:
        SkippedError: the development data are not here.
    """
    maker = SHARED / "cases" / "make_cases.py"
    if not maker.exists():
        raise SkippedError(f"no {maker} (set RIB_SHARED)")
    made = folder / "cases"
    if not made.exists():
        scratch = folder / f"cases-{os.getpid()}"
        subprocess.run([sys.executable, maker, scratch], check=True, capture_output=True)
        with suppress(OSError):  # another process was quicker
            scratch.rename(made)
    return made


def dataset(world: World, variant: str, rng: random.Random) -> str:
    """A dataset as people have it: which picture and which class it is."""
    name, place, labels, colours = DATASETS[variant]
    at = cases(world.folder.parent) / place
    said = _apart(world, "dataset", {"name": name, "at": str(at)})
    if "refused" in said:
        raise OtherError(f"refused: {said['refused']}")
    if "trace" in said:
        raise OtherError(said["trace"])
    if (said["labels"], said["colours"]) != (labels, colours):
        raise OtherError(f"labels {said['labels']}, colours {said['colours']}")
    return verdict(True)


def checkpoint(world: World, variant: str, rng: random.Random) -> str:
    """A checkpoint as a training script saves it."""
    names = CHECKPOINTS[variant]
    file = cases(world.folder.parent) / "checkpoints" / variant
    said = _apart(world, "checkpoint", {"file": str(file)})
    if "trace" in said:
        raise OtherError(said["trace"])
    if names is None:
        if said.get("values") != [1.0]:
            raise OtherError(f"{said}")
        return verdict(True)
    if "refused" not in said or not any(name in said["refused"] for name in names):
        raise OtherError(f"{said}")
    if "weights_only" in said["refused"]:
        raise OtherError(f"advice to switch the protection off: {said['refused']}")
    return verdict(False)


def _apart(world: World, what: str, given: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: `datasets` starts threads."""
    import json

    child = subprocess.run(
        [sys.executable, __file__, what, json.dumps(given)],
        env={**os.environ, "RIB_CACHE": str(world.cache), "RIB_PLUGINS": "imagenet-ood",
             "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, cwd=world.folder, check=False,
    )  # fmt: skip
    try:
        return dict(json.loads(child.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        raise OtherError(child.stderr[-2000:]) from None


def _open(name: str, at: str) -> dict[str, Any]:
    from rib_harness.catalog import load_catalog

    images = load_catalog().bind("dataset", f"{name}:at={at}").build().open(None)
    colours = []
    for i in range(len(images)):
        red, _, blue = images.image(i).convert("RGB").resize((1, 1)).getpixel((0, 0))
        colours.append("red" if red > 200 > blue else "blue" if blue > 200 > red else "neither")
    ids = [min(images.class_map[label]) for label in images.labels.tolist()]
    return {"labels": ids, "colours": colours}


def _load(file: str) -> dict[str, Any]:
    import torch

    from rib_harness import load_weights

    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.weight, 0.5)
    load_weights(model, Path(file))  # type: ignore[arg-type]
    return {"values": sorted({v for p in model.parameters() for v in p.flatten().tolist()})}


def _main() -> None:
    import json
    import traceback

    from rib_harness.errors import RibError

    given = json.loads(sys.argv[2])
    try:
        said = _open(**given) if sys.argv[1] == "dataset" else _load(**given)
    except RibError as error:
        said = {"refused": str(error)}
    except Exception:
        said = {"trace": traceback.format_exc()}
    sys.stdout.write("\n" + json.dumps(said) + "\n")


if __name__ == "__main__":
    _main()
