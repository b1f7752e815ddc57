"""One checkpoint on one dataset, a row an image: what metrics of level `scores` are made from."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rib_harness.errors import InapplicableError, PluginError, StoreError, nearest
from rib_harness.store import AGAIN

#: The columns of a scores file. Labels and predictions are indices into the set's classes.
SCORES = pa.schema(
    [
        ("index", pa.int64()),
        ("label", pa.int32()),
        ("prediction", pa.int32()),
        ("top5", pa.bool_()),
        ("confidence", pa.float32()),
        ("nll", pa.float32()),
        ("brier", pa.float32()),
        ("group", pa.string()),
        ("source", pa.string()),
    ]
)


def check_column(name: str) -> None:
    """Raise unless scores have it.

    Raises:
        PluginError: with the nearest name.
    """
    if name not in SCORES.names:
        raise PluginError(
            f"scores have no column {name!r}.{nearest(name, SCORES.names)} Columns: "
            f"{', '.join(SCORES.names)}."
        )


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one checkpoint on one dataset.

    Args:
        table: the columns of `SCORES`, by index.
    """

    table: pa.Table

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Read a scores file.

        Raises:
            StoreError: it is damaged.
        """
        try:
            return cls(pq.read_table(path, schema=SCORES))
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{path} is damaged ({error}). {AGAIN}") from None

    def write(self, path: Path) -> None:
        """Write a scores file (Parquet)."""
        pq.write_table(self.table, path, compression="zstd")

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> NDArray[Any]:
        """One column, (N,), read-only.

        Raises:
            PluginError: there is none of this name.
        """
        check_column(name)
        array: NDArray[Any] = self.table.column(name).to_numpy(zero_copy_only=False)
        array.flags.writeable = False
        return array

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(N,), whether the prediction is the label; read-only."""
        right: NDArray[np.bool_] = self.column("prediction") == self.column("label")
        right.flags.writeable = False
        return right

    def summary(self) -> dict[str, Any]:
        """What a cell of the matrix shows: n, correct, top1 in %, and each group's [correct, n]."""
        return summarise(self.correct, self.column("group"))


def summarise(correct: NDArray[np.bool_], groups: NDArray[Any]) -> dict[str, Any]:
    """What `Scores.summary` gives, from (N,) right or wrong and (N,) groups.

    Raises:
        InapplicableError: of no image.
    """
    if not len(correct):
        raise InapplicableError("An accuracy needs at least one image; here is none.")
    counts: dict[str, list[int]] = {}
    for group in np.unique(groups):
        mask = groups == group
        if group:
            counts[str(group)] = [int(correct[mask].sum()), int(mask.sum())]
    n, right = len(correct), int(correct.sum())
    return {
        "n": n,
        "correct": right,
        "top1": 100 * mean_over_groups(counts) if counts else 100 * right / n,
        "groups": counts,
    }


def mean_over_groups(counts: dict[str, list[int]]) -> float:
    """ImageNet-C's accuracy: mean over corruptions of the mean over severities.

    Args:
        counts: `"fog/3"` → [correct, n].
    """
    families: dict[str, list[float]] = defaultdict(list)
    for group, (correct, n) in counts.items():
        families[group.split("/")[0]].append(correct / n)
    return sum(sum(f) / len(f) for f in families.values()) / len(families)
