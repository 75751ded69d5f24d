"""One spelling of each add."""

from __future__ import annotations

import dataclasses
import operator
from typing import ClassVar

from torch import fx

from mhc_compile.passes import optable
from mhc_compile.passes.base import Context, value

_SHARES_STORAGE = optable.VIEW | {"to", "float", "half", "bfloat16", "double", "type", "type_as"}


@dataclasses.dataclass(frozen=True)
class Canonicalize:
    """`torch.add(a, b)`, `a.add(b)`, `a += b` and `a.add_(b)` become `a + b`.

    An in-place add stays as it is where what it overwrites is read afterwards, under this or another name, or belongs
    to the caller: then the overwriting is part of the function.
    """

    name: ClassVar[str] = "canonicalize"
    rewrites: ClassVar[bool] = True

    def __call__(self, gm: fx.GraphModule, context: Context) -> None:
        """Respell the adds of the graph."""
        order = {node: i for i, node in enumerate(gm.graph.nodes)}
        for node in list(gm.graph.nodes):
            if not optable.is_add(node) or (optable.is_inplace(node) and not _replaceable(node, order)):
                continue
            node.op, node.target = "call_function", operator.add
            node.args, node.kwargs = node.args[:2], {}


def _replaceable(node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Tell whether nobody can see that the first operand was overwritten."""
    target = node.args[0]
    if not isinstance(target, fx.Node):
        return False
    result, operand = value(node), value(target)
    if result is None or operand is None or result.dtype != operand.dtype:
        return False
    names = _same_storage(target)
    if any(alias.op in ("placeholder", "get_attr") for alias in names):
        return False
    return not any(order[user] > order[node] for alias in names for user in alias.users if user is not node)


def _same_storage(node: fx.Node) -> set[fx.Node]:
    """Return the nodes that may share storage with the node, through views and in-place ops."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        alias = stack.pop()
        if alias in seen:
            continue
        seen.add(alias)
        if optable.name(alias) in _SHARES_STORAGE or optable.is_inplace(alias):
            stack += [arg for arg in alias.args[:1] if isinstance(arg, fx.Node)]
        stack += [user for user in alias.users if user.args[:1] == (alias,) and optable.name(user) in _SHARES_STORAGE]
    return seen
