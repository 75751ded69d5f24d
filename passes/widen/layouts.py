"""What is read from streams gets the layout of the plain model, where somebody can tell."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import fx

from mhc_compile.passes.graph import layouts, provenance
from mhc_compile.passes.graph.effects.aliases import shares_with
from mhc_compile.passes.graph.walk import VALUES, value


def settle(graph: fx.Graph, read: Iterable[fx.Node], overwritten: Collection[fx.Node]) -> None:
    """Give tensors their plain strides in front of whatever can tell, such as a view or the caller.

    Before:                          After:
        y = movedim(read(X), ...)        y = movedim(read(X), ...)
        a = conv2d(y, w)                 a = conv2d(y, w)
        b = y.view(2, -1)                c = y.contiguous()
                                         b = c.view(2, -1)

    Features lie last in streams. Most ops take a tensor however it lies, and hand its layout on; so nothing is copied
    in front of these. What shares the memory of a tensor is taken from the copy, too.

    Args:
        graph: rewritten; its nodes' example values are those of the plain model.
        read: what may lie otherwise than in the plain model.
        overwritten: nodes whose value may change after they were computed.
    """
    other = set(read)
    seen: dict[fx.Node, None] = {}
    for node in graph.nodes if other else ():
        given = [arg for arg in node.all_input_nodes if arg in other]
        if not given or "mhc_site" in node.meta:
            continue
        if layouts.is_seen_by(node, overwritten):
            seen |= dict.fromkeys(_base(arg, other) for arg in given)
        elif not layouts.is_own(node) and not node.meta.keys().isdisjoint(VALUES):
            other.add(node)
    for node in seen:
        _restore(node, overwritten)


def _base(node: fx.Node, other: set[fx.Node]) -> fx.Node:
    """Return the first tensor that a node is a view of, as far as its layout is not the plain one."""
    base = node
    while True:
        below = [arg for arg in shares_with(node) if arg in other]
        if len(below) != 1:
            return base
        (node,) = below
        base = node if value(node) is not None else base


def _restore(node: fx.Node, overwritten: Collection[fx.Node]) -> None:
    """Let views of a tensor, and who can tell, read a copy that lies as in the plain model; where it does, the same."""
    plain = value(node)
    if plain is None:
        return
    everywhere = node in overwritten
    users = [
        user
        for user in node.users
        if everywhere
        or layouts.is_seen_by(user, overwritten)
        or ("mhc_site" not in user.meta and node in shares_with(user))
    ]
    axes = layouts.in_memory(plain)
    back = tuple(axes.index(i) for i in range(len(axes)))
    steps = (
        [("permute", axes), ("contiguous", ()), ("permute", back)]
        if axes != tuple(sorted(axes))
        else [("contiguous", ())]
    )
    made, example = node, plain.detach()
    for method, args in steps:
        with node.graph.inserting_after(made):
            made = node.graph.call_method(method, (made, *args))
        example = example.permute(*args) if args else example  # which lies in order then
        made.meta = {**provenance.inherited(node), "example_value": example}
    made.meta["example_value"] = plain
    for user in users:
        user.replace_input_with(node, made)
