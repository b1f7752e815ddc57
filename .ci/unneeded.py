"""Names of the installed distributions that the given ones do not ask for, one a line.

`python .ci/unneeded.py NAME...`; what is left without them is what installing NAME... gives.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution, distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(roots: list[str]) -> set[str]:
    """All that is asked for, directly or not, with the extras that are asked for."""
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(root) for root in roots]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        new = {(name, extra) for extra in ("", *requirement.extras)} - seen
        seen |= new
        try:
            asks = [Requirement(text) for text in distribution(name).requires or () if new]
        except PackageNotFoundError:
            continue  # of another platform, or missing: `pip check` tells
        for _, extra in new:
            todo += [r for r in asks if not r.marker or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


if __name__ == "__main__":
    installed = {canonicalize_name(one.metadata["Name"]) for one in distributions()}
    names = sorted(installed - needed(["pip", *sys.argv[1:]]))
    sys.stdout.write("".join(f"{name}\n" for name in names))
