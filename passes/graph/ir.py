"""Nodes of the mhc IR: their arguments laid out from a signature, and their results by name (see `ops.signatures`)."""

from __future__ import annotations

from typing import Any

from torch import fx

from mhc_compile.ops.signatures import flat, names


def args(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return an op's signature as a node's arguments; what has its default at the end is left out."""
    made, defaults = flat(given), type(given)._field_defaults  # type: ignore[attr-defined]  # of a NamedTuple
    for name in reversed(names(type(given))):
        if name not in defaults or made[-1] != defaults[name]:
            break
        made.pop()
    return tuple(made)


def results(node: fx.Node, kind: type[tuple[Any, ...]]) -> list[tuple[str, fx.Node]]:
    """Return the nodes that pick a result of an op, each behind the result's name; the op returns such results."""
    found = []
    for user in node.users:
        _, index = user.args  # of getitem
        assert isinstance(index, int)
        found.append((names(kind)[index], user))
    return found
