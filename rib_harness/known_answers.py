"""Known answers: what an untouched backbone is known to score, and whether it does. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rib_harness.matrix import Cell

#: Standard errors of a published percentage within which a measured one agrees with it.
STANDARD_ERRORS = 3.0

#: Share of the images whose prediction may differ between two machines, for a count K/N.
FLIPS = 0.005


@dataclass(frozen=True)
class Expected:
    """A known top-1 accuracy.

    Args:
        percent: of all images; for a set with groups the mean over its groups.
        images: on how many images; None where that is not known, or a limit was asked for.
        exact: whether the count itself is known, on the very same images.
        source: who says so.
    """

    percent: float
    images: int | None = None
    exact: bool = False
    source: str = ""

    @classmethod
    def parse(cls, text: str, source: str = "") -> Expected:
        """From `78.5` or `314/400`.

        >>> Expected.parse("314/400").percent
        78.5
        """
        count = re.fullmatch(r"(\d+)/(\d+)", text)
        if count:
            correct, n = int(count.group(1)), int(count.group(2))
            if 0 <= correct <= n and n > 0:
                return cls(100 * correct / n, n, exact=True, source=source)
        try:
            percent = float(text.removesuffix("%"))
        except ValueError:
            percent = -1.0
        if count or not 0 <= percent <= 100:
            raise ValueError(f"expected a percentage such as 78.5, or K/N as 314/400, not {text!r}")
        return cls(percent, source=source)

    def tolerance(self, n: int) -> float:
        """Points by which a measured accuracy may differ.

        A published percentage: three standard errors of `n` images. A count on the same images:
        a few near ties that rounding decides.
        """
        if self.exact:
            return 100 * FLIPS
        p = min(max(self.percent / 100, 1 / (n + 1)), n / (n + 1))
        return STANDARD_ERRORS * 100 * (p * (1 - p) / n) ** 0.5

    def agrees(self, cell: Cell) -> bool:
        """Whether what was measured is that, on as many images."""
        if self.images is not None and cell.n != self.images:
            return False
        return abs(cell.top1 - self.percent) <= self.tolerance(cell.n) + 1e-9

    def __str__(self) -> str:
        of = f" of {self.images:,} images" if self.images is not None else ""
        return f"{self.percent:.2f} %{of}"

    def to_json(self) -> dict[str, float | int | str | None]:
        """As JSON values."""
        return vars(self).copy()


@dataclass(frozen=True)
class Miss:
    """A known answer that was not given.

    Args:
        dataset: on which set.
        cell: what was measured.
        causes: what would explain it, as sentences; empty if nothing that was tried does.
        backbone: whose answer it is.
    """

    dataset: str
    expected: Expected
    cell: Cell
    causes: tuple[str, ...] = ()
    backbone: str = ""

    def __str__(self) -> str:
        cell, expected = self.cell, self.expected
        head = (
            f"{self.backbone} on {self.dataset}: {cell.top1:.2f} % of {cell.n:,} images, "
            f"expected {expected} (± {expected.tolerance(cell.n):.2f}, {expected.source})"
        )
        causes = self.causes or ("no usual cause explains it",)
        return "\n".join([head, *(f"    likely cause: {cause}" for cause in causes)])


def misses(backbone: str, expected: Mapping[str, Expected], pre: Mapping[str, Cell]) -> list[Miss]:
    """The known answers that were measured and not met."""
    return [
        Miss(name, answer, pre[name], backbone=backbone)
        for name, answer in expected.items()
        if name in pre and not answer.agrees(pre[name])
    ]
