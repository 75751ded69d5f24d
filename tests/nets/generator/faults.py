"""What is known to be wrong today: the short run leaves it out, `python -m tests.nets.generator` does not."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

# Patterns. Whoever mends one takes its line away; one that nothing matches is an error.
STRUCTURES: tuple[str, ...] = (
    "effects/no_grad, skip behind",
    "effects/autocast, skip behind",
    "effects/state, skip behind",
    "effects/overwritten without gradients, *",
    "effects/draw between branch and skip",
    "aliases/*",
    "gates/*",
    "spellings/*",
    "calls/*",
    "opaque/autograd.Function behind",
    "opaque/owner walks by ModuleList",
    "checkpoints/*",
    "recurrences/c*",  # continuous time, cell of state and token
    "recurrences/delta rule",
    "recurrences/inverse by iteration",
    "images/*",
)
USES: tuple[str, ...] = (
    "twice in one function",
    "target without gradients",
    "first piece left out",
    "* iterations",
    "* patched",
    "removed",
)
TAILS: tuple[str, ...] = ("turned",)


def without(names: Iterable[str], faults: Iterable[str]) -> list[str]:
    """Return the names that no pattern matches."""
    faults = tuple(faults)
    return [name for name in names if not any(fnmatch.fnmatchcase(name, fault) for fault in faults)]
