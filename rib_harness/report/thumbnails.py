"""Small pictures for the page, up to a budget, and only of the very images that were scored."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from rib_harness.catalog import Bound, Catalog
from rib_harness.config import RunConfig, make_config
from rib_harness.errors import DataError, RibError
from rib_harness.guard import as_it_was
from rib_harness.images import ImageSet
from rib_harness.options import Reference
from rib_harness.report.data import Part
from rib_harness.store import Store

#: Longest side in pixels.
SIDE = 72


@dataclass
class Opened:
    """The datasets of a part, those that can be opened and are still what was scored.

    Args:
        sets: name → images.
        why: name → what kept it shut.
    """

    sets: dict[str, ImageSet] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def classes(self, name: str) -> tuple[str, ...]:
        """Names of a set's classes; empty where it is shut."""
        return self.sets[name].classes if name in self.sets else ()


def open_datasets(
    part: Part, store: Store, catalog: Catalog, data_root: Path | None = None
) -> Opened:
    """Open each dataset as the run did, and compare its images with those that were scored.

    Args:
        data_root: folder of the datasets; None is where the run had it.
    """
    opened = Opened()
    try:
        config = make_config({}, store.path / "configs" / f"{part.record['id']}.toml")
    except RibError as error:
        opened.why = dict.fromkeys(part.datasets, f"the run's configuration: {error}")
        return opened
    for name in part.datasets:
        pre = next(
            (run.record["cells"]["pre"][name] for run in part.runs if name in run.matrix.pre), None
        )
        if pre is None:
            opened.why[name] = "it was not scored"
            continue
        try:
            images = _open(name, part, config, catalog, data_root)
            _check(name, images, store, pre)
        except RibError as error:
            opened.why[name] = str(error)
        except Exception as error:  # a plugin's own: the numbers need no pictures
            opened.why[name] = f"it could not be opened ({error!r})"
        else:
            opened.sets[name] = images[1]
    return opened


def _open(
    name: str, part: Part, config: RunConfig, catalog: Catalog, data_root: Path | None
) -> tuple[Bound, ImageSet]:
    text = next((one for one in config.data if Reference.parse(one).name == name), name)
    own = f"{str(part.record['suite_id']).partition('/')[0]}/{text}"
    known = {component.id for component in catalog.list("dataset")}
    bound = catalog.bind("dataset", own if own.partition(":")[0] in known else text)
    return bound, bound.images(data_root or config.data_root).limited(part.record["limit"])


def _check(name: str, opened: tuple[Bound, ImageSet], store: Store, key: str) -> None:
    """Raise where the images are others than those of the scores.

    Raises:
        DataError: they are.
    """
    from rib_harness.plan import PlannedDataset

    inputs = store.inputs(key)
    if inputs is None:
        raise DataError("the step that scored them is damaged")
    scored = inputs["dataset"]
    now = json.loads(json.dumps(PlannedDataset(name, *opened).inputs))
    if (now["fingerprint"], now["labels"]) != (scored["fingerprint"], scored["labels"]):
        raise DataError("its images are no longer those that were scored")


def thumbnails(
    wanted: Sequence[tuple[str, int]], sets: Mapping[str, ImageSet], budget: float
) -> tuple[dict[tuple[str, int], str], str]:
    """Pictures as data URIs, in the order given until the budget is spent.

    Args:
        wanted: (dataset, row).
        sets: opened datasets; of the others there is no picture.
        budget: in MB of the page.

    Returns:
        (dataset, row) → data URI; and what went wrong, if something did.
    """
    left, made, problem = int(budget * 1e6), {}, ""
    for name, row in wanted:
        if name not in sets:
            continue
        try:
            with as_it_was(f"the dataset {name}"):
                uri = data_uri(sets[name].shown(row))
        except DataError as error:
            problem = problem or str(error)
            continue
        if len(uri) > left:
            break
        left -= len(uri)
        made[name, row] = uri
    return made, problem


def data_uri(picture: Image.Image) -> str:
    """A picture of at most `SIDE` pixels: PNG where it is tiny, else WebP."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    tiny = max(picture.size) <= SIDE // 2
    if tiny:
        small.save(out, "PNG", optimize=True)
    else:
        small.save(out, "WEBP", quality=60, method=4)
    kind = "png" if tiny else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
