"""The pointwise ops that a branch ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import number, other, value


@dataclasses.dataclass(frozen=True)
class BranchTail:
    """A branch's output as `(f + offset) * multiplier * scale`, and the nodes that compute that of f."""

    f: fx.Node
    offset: fx.Node | None = None
    scale: fx.Node | None = None
    multiplier: float = 1.0
    nodes: tuple[fx.Node, ...] = ()


def peel(output: fx.Node, may_go: Callable[[fx.Node], bool]) -> BranchTail:
    """Return a branch's output without what a fused op can do as well.

    That is a vector `[C]` that is added, one that multiplies, Python numbers that multiply or divide, a change of sign,
    and casts between these. What is left is never of a wider dtype than the output, or more would be read and saved.
    Dropout ends the walk: its random numbers are the plain graph's.

    Args:
        output: what is written to the streams.
        may_go: tells whether nobody needs a node on the way but its reader.
    """
    best = tail = BranchTail(output)
    while may_go(tail.f):
        step = _step(tail)
        if step is None:
            break
        tail = dataclasses.replace(step, nodes=(*tail.nodes, tail.f))
        if _width(tail.f) <= _width(output):
            best = tail
    return best


def why_left_out(tail: BranchTail, may_go: Callable[[fx.Node], bool]) -> str | None:
    """Return why the walk ended at a pointwise op, a key of `reasons.LEFT_OUT`; None where it ended at real work."""
    op = optable.name(tail.f)
    if op in optable.DROPOUT:
        return "tail-dropout"
    if op not in optable.POINTWISE | optable.CAST or not tail.f.all_input_nodes:
        return None
    if not may_go(tail.f):
        return "tail-shared" if len(tail.f.users) > 1 else "tail-place"
    if op not in ("mul", "div", "truediv", "add", "sub", "neg") and not optable.is_cast(tail.f):
        return "tail-op"
    return "tail-operand" if _step(BranchTail(tail.f)) is None else "tail-order"


def _step(tail: BranchTail) -> BranchTail | None:
    """Take in the op that makes f."""
    node, op = tail.f, optable.name(tail.f)
    given = node.args[0] if node.args else None
    if optable.is_cast(node):
        return _onto(tail, given)
    if tail.offset is not None:  # what is added is added first
        return None
    if op == "neg":
        return _onto(tail, given, multiplier=-tail.multiplier)
    factor = _factor(node, op)
    if factor is not None:
        return _onto(tail, next(iter(node.all_input_nodes)), multiplier=tail.multiplier * factor)
    if op == "mul" and tail.scale is None:
        return _with_vector(tail, "scale")
    if op == "add":
        return _with_vector(tail, "offset")
    return None


def _factor(node: fx.Node, op: str) -> float | None:
    """Return the number that a node multiplies its one input with."""
    if len(node.all_input_nodes) != 1:
        return None
    given = other(node, node.all_input_nodes[0])
    if op == "mul":
        return number(given)
    if op in ("div", "truediv", "true_divide") and node.args[0] is node.all_input_nodes[0]:
        divisor = number(given)
        return 1 / divisor if divisor else None
    return None


def _with_vector(tail: BranchTail, role: str) -> BranchTail | None:
    """Take in a product with a vector or a sum with one, whichever operand it is."""
    for f in tail.f.all_input_nodes:
        vector = other(tail.f, f)
        found = _onto(tail, f, **{role: vector}) if _is_row(vector, tail.f) else None
        if found is not None:
            return found
    return None


def _onto(tail: BranchTail, f: Any, **changes: Any) -> BranchTail | None:
    """Return the tail of a tensor f that is like what the last op makes of it."""
    made, given = value(tail.f), value(f) if isinstance(f, fx.Node) else None
    if made is None or given is None or made.shape != given.shape or not given.is_floating_point():
        return None
    return dataclasses.replace(tail, f=f, **changes)


def _is_row(node: Any, like: fx.Node) -> bool:
    """Tell whether a node holds one number per feature, features last."""
    tensor, made = value(node) if isinstance(node, fx.Node) else None, value(like)
    if tensor is None or made is None or not tensor.is_floating_point() or not 0 < tensor.dim() <= made.dim():
        return False
    *ones, last = tensor.shape
    return last == made.shape[-1] and all(isinstance(size, int) and size == 1 for size in ones)


def _width(node: fx.Node) -> int:
    tensor: Tensor | None = value(node)
    return 0 if tensor is None else tensor.dtype.itemsize
