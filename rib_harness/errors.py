"""What can go wrong by a user's hand: one message, no traceback, a non-zero exit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class RibError(Exception):
    """A mistake that the user can mend. The text says what was expected, what came, what to do."""


class UnknownComponentError(RibError):
    """No installed plugin offers a component of this name."""


class AmbiguousComponentError(RibError):
    """Several plugins offer this short name; the canonical `plugin/name` is needed."""


class PluginError(RibError):
    """The component exists, but its plugin did not load."""


class ConfigError(RibError):
    """The run configuration is not valid. All problems are listed at once."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            super().__init__(f"{len(self.problems)} problems in the configuration:\n{lines}")


class DataError(RibError):
    """A dataset is missing, incomplete or unreadable; the message names the file or folder."""


class StoreError(RibError):
    """The store cannot be used: not writable, from a newer version, or damaged."""


class DivergedError(RibError):
    """Training or evaluation produced a number that is not finite. Never scored."""


class InapplicableError(RibError):
    """A metric does not apply to this dataset or suite; the message says what it would need."""


class InterruptedRun(KeyboardInterrupt):
    """Stopped by Ctrl-C, SIGTERM or SIGHUP at a safe point; the state so far is on disk."""


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """A sentence offering the names most like `name`, or an empty string.

    >>> nearest("lfw", ["lwf", "ewc"])
    " Did you mean 'lwf'?"
    """
    lower = {one.lower(): one for one in known}
    close = [lower[one] for one in get_close_matches(name.lower(), lower, n=limit, cutoff=0.55)]
    if not close:
        return ""
    return f" Did you mean {' or '.join(repr(match) for match in close)}?"
