"""One check, and how it ends."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from dataclasses import dataclass, field

from rib_harness.errors import RibError


class CheckError(AssertionError):
    """A check failed: what is wrong, and what to change."""


class CheckSkipped(unittest.SkipTest):
    """A check could not be made here, and why. pytest and unittest take it as a skip."""


def expect(fine: bool, message: str) -> None:
    """Fail the check unless all is fine."""
    if not fine:
        raise CheckError(message)


@dataclass(frozen=True)
class Check:
    """One check of one component; call it to make it.

    Args:
        id: `plugin/light`, or `method/mine/resumes`: kind, component and check.
        component: the component's id, or the plugin's name.
        function: the check, see its docstring.
        run: makes it.
    """

    id: str
    component: str
    function: Callable[..., None]
    run: Callable[[], None] = field(repr=False)

    def __call__(self) -> None:
        """Make the check.

        Raises:
            CheckError: it failed; says what to change.
            CheckSkipped: it could not be made here.
        """
        try:
            self.run()
        except (CheckError, CheckSkipped) as error:
            error.args = (f"{self.component}: {error}",)
            raise
        except Exception as error:
            said = str(error) if isinstance(error, RibError) else f"{type(error).__name__}: {error}"
            raise CheckError(f"{self.component}: {said}") from error

    def outcome(self) -> dict[str, str]:
        """Make the check, and say how it went: component; `ok`, `failed` or `skipped`; reason."""
        result, reason = "ok", ""
        try:
            self()
        except CheckSkipped as skip:
            result, reason = "skipped", str(skip)
        except CheckError as error:
            result, reason = "failed", str(error)
        reason = reason.removeprefix(f"{self.component}: ")
        return {"component": self.component, "result": result, "reason": reason}
