"""Norms, activations and views that are written twice: of a term and its twin, which the branch reads, one is enough."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx

from mhc_compile.passes.graph import checkpoints, optable
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.order import Order
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
        terms = node.args[:2] if optable.is_add(node) or optable.is_difference(node) else ()
        for term in terms:
            if not isinstance(term, fx.Node) or not _is_pure(term) or not _is_repeated(term):
                continue
            order = order or Order(facts)
            twins = [term, *_twins(term, facts)]
            first = min(twins, key=facts.order.__getitem__)
            for twin in twins:
                if twin is not first and _may_be_one(twin, first, order):
                    twin.replace_all_uses_with(first)
                    _erase(twin)


def _is_pure(node: fx.Node) -> bool:
    """Tell whether the node makes the same again from one tensor of data."""
    if node.op not in ("call_function", "call_method") or optable.name(node) not in _PURE or optable.is_inplace(node):
        return False
    if optable.name(node) == "batch_norm" and optable.argument(node, 5, "training", False) is not False:
        return False
    return value(node) is not None and not (optable.is_add(node) or optable.is_difference(node))


def _is_repeated(term: fx.Node) -> bool:
    """Tell whether somewhere in front of a term two nodes do the same to one tensor."""
    return any(_has_rivals(node) for node in _cone(term))


def _has_rivals(node: fx.Node) -> bool:
    for source in node.all_input_nodes[:1]:
        if any(user is not node and user.target == node.target for user in source.users):
            return True
    return False


def _cone(term: fx.Node) -> Iterable[fx.Node]:
    """Iterate over the pure nodes that a term is made by, the term first."""
    stack, seen = [term], set[fx.Node]()
    while stack and len(seen) < _DEEP:
        node = stack.pop()
        if node not in seen and _is_pure(node):
            seen.add(node)
            yield node
            stack += node.all_input_nodes


def _twins(term: fx.Node, facts: GraphFacts) -> list[fx.Node]:
    """Return the other nodes that hold the term's value, told by numbering what reads the same tensors."""
    cone = set(_cone(term))
    starts = {arg for node in cone for arg in node.all_input_nodes} - cone - facts.static
    near, stack = set(cone), [*starts, *cone]
    while stack and len(near) < _WIDE + len(cone):
        for user in stack.pop().users:
            if user not in near and _is_pure(user):
                near.add(user)
                stack.append(user)
    numbers: dict[fx.Node, Any] = {}
    known: dict[Any, int] = {}
    for node in sorted(near, key=facts.order.__getitem__):
        key = repr((node.op, node.target, fx.map_arg((node.args, node.kwargs), lambda arg: numbers.get(arg, arg))))
        numbers[node] = known.setdefault(key, len(known))
    return [node for node in near if numbers[node] == numbers[term] and node is not term]


def _may_be_one(twin: fx.Node, first: fx.Node, order: Order) -> bool:
    """Tell whether nobody can tell a node from its twin."""
    if not {twin, first}.isdisjoint(order.overwritten) or any(user.op == "output" for user in twin.users):
        return False
    return order.same_mode(twin, first) and checkpoints.tags(twin) == checkpoints.tags(first)


def _erase(node: fx.Node) -> None:
    """Erase a node that nobody reads, and what was made for it alone."""
    stack = [node]
    while stack:
        node = stack.pop()
        if not node.users and _is_pure(node):
            inputs = node.all_input_nodes
            node.graph.erase_node(node)
            stack += inputs
