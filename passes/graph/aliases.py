"""Which nodes may share memory, and which of them are overwritten."""

from __future__ import annotations

from torch import fx

from mhc_compile.passes.graph import optable

_SHARES_STORAGE = optable.VIEW | {"to", "float", "half", "bfloat16", "double", "type", "type_as"}


def same_storage(node: fx.Node, but: fx.Node | None = None) -> set[fx.Node]:
    """Return the nodes that may share storage with the node, through views and in-place ops other than `but`."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        alias = stack.pop()
        if alias in seen or alias is but:
            continue
        seen.add(alias)
        if _shares(alias):
            stack += [arg for arg in alias.args[:1] if isinstance(arg, fx.Node)]
        stack += [user for user in alias.users if user.args[:1] == (alias,) and _shares(user)]
    return seen


def overwritten(gm: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose value may change after they were computed."""
    found: set[fx.Node] = set()
    for node in gm.graph.nodes:
        target = node.args[0] if optable.is_inplace(node) and node.args else node.kwargs.get("out")
        if isinstance(target, fx.Node) and target not in found:
            found |= same_storage(target)
    return found


def _shares(node: fx.Node) -> bool:
    return optable.name(node) in _SHARES_STORAGE or optable.is_inplace(node)
