"""Norms, activations and views that are written twice: once for the skip, once for the branch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.effects.order import Order
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.walk import value

_PURE = (
    (optable.POINTWISE | optable.CAST | optable.REDUCE | optable.VIEW) - {"clone"}
    | frozenset("layer_norm rms_norm group_norm batch_norm getattr".split())
)  # fmt: skip
_DEEP, _WIDE = 12, 48  # how far back from a term its start is looked for, and how much of what reads that


def merge(facts: GraphFacts) -> None:
    """Let who reads the twin of a sum's term read the term, or the other way round: whichever stands first.

    `norm(x) + f(norm(x))` becomes `y + f(y)`. What is overwritten, returned, or runs in another mode keeps its own.
    """
    order: Order | None = None
    for node in facts.nodes:
        if optable.name(node) not in ("add", "sub") or optable.terms_alike(node) is None:
            continue
        for term in map(_copied, node.args[:2]):
            if isinstance(term, fx.Node) and _is_pure(term) and _is_repeated(term):
                order = order or Order(facts)
                for twins in _twins(term, facts):
                    _make_one(sorted(twins, key=facts.order.__getitem__), order)


def _copied(term: Any) -> Any:
    while isinstance(term, fx.Node) and optable.is_copy(term):
        term = term.args[0]
    return term


def _make_one(twins: list[fx.Node], order: Order) -> None:
    """Let the first of several nodes stand for the others."""
    first, *others = twins
    for twin in others:
        if first.users and twin.users and _may_be_one(twin, first, order):
            twin.replace_all_uses_with(first)
            _erase(twin)


def _is_pure(node: fx.Node) -> bool:
    """Tell whether the node makes the same again from one tensor of data."""
    if optable.name(node) not in _PURE or optable.is_inplace(node):
        return False
    if optable.name(node) == "batch_norm" and optable.argument(node, 5, "training", False) is not False:
        return False
    if value(node) is None:
        return False
    return optable.name(node) not in ("add", "sub") or optable.terms_alike(node) is None


def _is_repeated(term: fx.Node) -> bool:
    """Tell whether somewhere in front of a term two nodes do the same to one tensor."""
    return any(_has_rivals(node) for node in _cone(term))


def _has_rivals(node: fx.Node) -> bool:
    for source in node.all_input_nodes[:1]:
        for user in source.users:
            same = user is not node and user.target == node.target and user.args == node.args
            if same and user.kwargs == node.kwargs:
                return True
    return False


def _cone(term: fx.Node) -> Iterable[fx.Node]:
    """Iterate over the pure nodes that a pure term is made by, the term first."""
    stack, seen = [term], {term}
    while stack and len(seen) < _DEEP:
        node = stack.pop()
        yield node
        fresh = [arg for arg in node.all_input_nodes if arg not in seen and _is_pure(arg)]
        seen.update(fresh)
        stack += fresh


def _twins(term: fx.Node, facts: GraphFacts) -> list[list[fx.Node]]:
    """Return the nodes with the value of the term, and of each that it is made by, the last of these first."""
    cone = list(_cone(term))
    starts = {arg for node in cone for arg in node.all_input_nodes}.difference(cone) - facts.static
    near, stack = set(cone), [*starts, *cone]
    while stack and len(near) < _WIDE + len(cone):
        for user in stack.pop().users:
            if user not in near and _is_pure(user):
                near.add(user)
                stack.append(user)
    numbers: dict[fx.Node, Any] = {}
    known: dict[str, list[fx.Node]] = {}
    for node in sorted(near, key=facts.order.__getitem__):
        arguments = fx.map_arg((node.args, node.kwargs), lambda arg: numbers.get(arg, arg))
        same = known.setdefault(repr((node.op, node.target, arguments)), [])
        same.append(node)
        numbers[node] = same[0]
    held = [group for group in known.values() if len(group) > 1 and not set(group).isdisjoint(cone)]
    return sorted(held, key=lambda group: facts.order[group[0]], reverse=True)


def _may_be_one(twin: fx.Node, first: fx.Node, order: Order) -> bool:
    """Tell whether nobody can tell a node from its twin."""
    if not {twin, first}.isdisjoint(order.overwritten) or any(user.op == "output" for user in twin.users):
        return False
    return order.can_merge(twin, first)


def _erase(node: fx.Node) -> None:
    """Erase a node that nobody reads, and what was made for it alone."""
    stack = [node]
    while stack:
        node = stack.pop()
        if not node.users and _is_pure(node):
            inputs = node.all_input_nodes
            node.graph.erase_node(node)
            stack += [arg for arg in inputs if arg not in stack]
