"""What is known to be wrong today: the short run leaves it out, `python -m tests.nets.generator` does not."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

# Patterns of structures and of uses. Whoever mends one takes its line away; a line that nothing matches is an error.
STRUCTURES: tuple[str, ...] = ()
USES: tuple[str, ...] = ()


def without(names: Iterable[str], faults: Iterable[str]) -> list[str]:
    """Return the names that no pattern matches."""
    faults = tuple(faults)
    return [name for name in names if not any(fnmatch.fnmatchcase(name, fault) for fault in faults)]
