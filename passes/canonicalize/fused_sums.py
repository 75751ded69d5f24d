"""Residual connections whose add is part of another op: `lerp`, `addcmul`, `addmm` and their like."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mhc_compile.passes.canonicalize.spellings import example, readers
from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.walk import value

_PRODUCTS: dict[str, Callable[..., Any]] = {
    "addcmul": operator.mul, "addcdiv": operator.truediv, "addmm": torch.matmul, "baddbmm": torch.matmul,
}  # fmt: skip


def take_apart(node: fx.Node, facts: GraphFacts) -> None:
    """Respell a node as an add, where one of its terms is computed from the other by real work.

    Elsewhere it stays: an op that rounds once becomes two that round twice. So does `lerp` by a weight that data make,
    a gate.
    """
    op = optable.name(node)
    if op == "rsub" and len(node.args) == 2 and not node.kwargs:
        node.op, node.target, node.args = "call_function", operator.sub, node.args[::-1]
    elif op == "lerp":
        _interpolation(node, facts)
    elif op in _PRODUCTS:
        _product(node, facts)


def _interpolation(node: fx.Node, facts: GraphFacts) -> None:
    """`torch.lerp(x, f, w)` becomes `x * (1 - w) + f * w`."""
    weight: Any = optable.argument(node, 2, "weight")
    fixed = not isinstance(weight, fx.Node) or weight in facts.static or weight in facts.constant
    if not fixed or optable.terms_alike(node) is None:
        return
    start, end = node.args[:2]
    if not (_carries(start, end, facts) or _carries(end, start, facts)):
        return
    if isinstance(weight, fx.Node):
        rest: Any = _insert(node, operator.sub, (1, weight), weight)
    else:
        rest = 1 - weight
    kept, made = (_insert(node, operator.mul, pair, node) for pair in ((start, rest), (end, weight)))
    _become_a_sum(node, kept, made)


def _product(node: fx.Node, facts: GraphFacts) -> None:
    """`torch.addcmul(x, a, b, value=c)` becomes `x + a * b * c`, `torch.addmm(x, a, b)` `x + a @ b`."""
    if len(node.args) < 3 or node.kwargs.keys() - {"value", "alpha", "beta"}:
        return
    x, a, b = node.args[:3]
    kept, total = value(x) if isinstance(x, fx.Node) else None, value(node)
    if kept is None or total is None or kept.shape != total.shape or kept.dtype != total.dtype or total.dim() < 2:
        return
    product = _PRODUCTS[optable.name(node)]
    works = product is torch.matmul
    skips = [] if works else [factor for factor in (a, b) if _sizes(factor) == total.shape]
    if not (any(_carries(x, arg, facts, works) for arg in (a, b)) or any(_carries(skip, x, facts) for skip in skips)):
        return
    made = _insert(node, product, (a, b), node)
    for key, term in (("value", made), ("alpha", made), ("beta", x)):
        factor = node.kwargs.get(key, 1)
        if factor != 1:
            scaled = _insert(node, operator.mul, (term, factor), node)
            x, made = (scaled, made) if term is x else (x, scaled)
    _become_a_sum(node, x, made)


def _carries(skip: Any, branch: Any, facts: GraphFacts, works: bool = False) -> bool:
    """Tell whether a branch is computed from a skip, or from what the skip is a view of, by real work.

    Args:
        skip: a node, if it is a tensor.
        branch: the same.
        facts: of the graph.
        works: True where real work follows behind the branch.
    """
    if not isinstance(skip, fx.Node) or not isinstance(branch, fx.Node):
        return False
    start = _seen_through(skip)
    behind = readers(start, [branch], facts.order)
    if works and (branch in behind or branch is start):
        return True
    stack, seen = [branch] if branch in behind else [], set[fx.Node]()
    while stack:
        node = stack.pop()
        if optable.works(node):
            return True
        seen.add(node)
        stack += [arg for arg in node.all_input_nodes if arg in behind and arg not in seen]
    return False


def _sizes(arg: Any) -> Any:
    tensor = value(arg) if isinstance(arg, fx.Node) else None
    return None if tensor is None else tensor.shape


def _seen_through(node: fx.Node) -> fx.Node:
    """Return what a node is a view, cast or multiple of."""
    while optable.name(node) in optable.VIEW | optable.CAST | {"mul"} and len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
    return node


def _insert(node: fx.Node, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
    with node.graph.inserting_before(node):
        made = node.graph.call_function(target, args)
    made.meta = {**node.meta, **example(value(like))}
    return made


def _become_a_sum(node: fx.Node, a: Any, b: Any) -> None:
    node.op, node.target, node.args, node.kwargs = "call_function", operator.add, (a, b), {}
