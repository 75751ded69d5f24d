"""Views that move tokens and leave features last: how they act on streams, with their axis before the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import traced, value

Call = tuple[str, tuple[Any, ...]]  # a tensor's method, and its arguments behind the tensor


def on_streams(node: fx.Node, n: int) -> Call | None:
    """Return what does to streams `[..., n, C]` what the node does to `[..., C]`; None where nothing does.

    Args:
        node: an op of the family VIEW.
        n: number of streams.
    """
    source = node.args[0] if node.args else None
    before = value(source) if isinstance(source, fx.Node) else None
    after = value(node)
    if before is None or after is None or before.dim() < 2 or after.dim() < 2 or before.shape[-1] != after.shape[-1]:
        return None
    rank, op = before.dim(), optable.name(node)
    if op in optable.RESHAPE:
        return _reshaped(node, n, after.shape[-1])
    if optable.is_copy(node):
        return (op, ())
    if op in ("transpose", "swapaxes"):
        dims = [_from_the_start(arg, rank) for arg in node.args[1:3]]
        return (op, tuple(dims)) if len(dims) == 2 and _are_tokens(dims, rank) else None
    if op == "permute":
        return _permuted(node, rank)
    if op in ("flatten", "unsqueeze", "squeeze"):
        dims = [_from_the_start(arg, rank + (op == "unsqueeze")) for arg in node.args[1:]]
        return (op, tuple(dims)) if len(dims) == 1 + (op == "flatten") and _are_tokens(dims, rank) else None
    if op == "getitem":
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        slices = all(isinstance(i, slice) for i in index) and len(index) < rank
        return ("__getitem__", (node.args[1],)) if slices else None
    return None


def _reshaped(node: fx.Node, n: int, channels: Any) -> Call | None:
    sizes = _listed(node)
    if node.kwargs or not sizes or not isinstance(channels, int):
        return None
    return ("reshape", ((*sizes[:-1], n, channels),))


def _permuted(node: fx.Node, rank: int) -> Call | None:
    dims = [_from_the_start(dim, rank) for dim in _listed(node)]
    return ("permute", (*dims, rank)) if dims and dims[-1] == rank - 1 else None


def _listed(node: fx.Node) -> Sequence[Any]:
    """Return the arguments behind the tensor, given one by one or as one sequence; none where a node holds them all."""
    first: Any = node.args[1] if len(node.args) == 2 else None
    if isinstance(first, fx.Node) and isinstance(traced(first), (tuple, list)):
        return ()  # canonicalize lists them
    return first if isinstance(first, (tuple, list)) else node.args[1:]


def _from_the_start(dim: Any, rank: int) -> int:
    """Count an axis from the start, where streams do not move it; -1 if it is not a number."""
    return dim % rank if isinstance(dim, int) else -1


def _are_tokens(dims: list[int], rank: int) -> bool:
    return all(0 <= dim < rank - 1 for dim in dims)
