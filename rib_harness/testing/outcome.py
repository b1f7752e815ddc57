"""One check, and how it ends."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from rib_harness.errors import RibError, nearest


class CheckError(AssertionError):
    """A check failed: what is wrong, and what to change."""


class CheckSkipped(unittest.SkipTest):
    """A check could not be made here, and why. pytest and unittest take it as a skip."""


def expect_methods(component: object, **takes: str) -> None:
    """Fail the check unless the component has these methods.

    Args:
        component: as built.
        takes: method → what it takes, e.g. `finetune="task"`.
    """
    for name, parameters in takes.items():
        has = [one for one in dir(component) if not one.startswith("_")]
        expect(
            callable(getattr(component, name, None)),
            f"{type(component).__name__} has no method {name}({parameters})."
            f"{nearest(name, has)} See rib_harness.protocols.",
        )


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
        after: checks on which this one rests; where one failed, this one is skipped.
    """

    id: str
    component: str
    function: Callable[..., None]
    run: Callable[[], None] = field(repr=False)
    after: tuple[Check, ...] = field(default=(), repr=False)

    def __call__(self) -> None:
        """Make the check.

        Raises:
            CheckError: it failed; says what to change.
            CheckSkipped: it could not be made here.
        """
        try:
            for one in self.after:
                if one.has_failed:
                    raise CheckSkipped(f"{one.id} failed: mend that first")
            self.run()
        except (CheckError, CheckSkipped) as error:
            error.args = (f"{self.component}: {error}",)
            raise
        except Exception as error:
            said = str(error) if isinstance(error, RibError) else f"{type(error).__name__}: {error}"
            raise CheckError(f"{self.component}: {said}") from error

    @cached_property
    def has_failed(self) -> bool:
        """Whether it fails. Made once: the checks that rest on it all ask."""
        return self.outcome()["result"] == "failed"

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
