"""Which axes of a tensor the axes of a later view of it come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import traced, value

Axes = tuple[frozenset[int], ...]  # for each axis, the axes of the first tensor that it is made of

_MERGES = optable.RESHAPE | {"flatten", "unflatten"}
_MOVES = frozenset("transpose permute movedim swapaxes t squeeze unsqueeze".split())


def identity(rank: int) -> Axes:
    """Return the axes of the tensor itself."""
    return tuple(frozenset((i,)) for i in range(rank))


def follow(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | None:
    """Return the axes of what a node makes of its input, or None where they cannot be told.

    Args:
        node: reads the input.
        source: the input.
        axes: the input's axes.
    """
    op, before, after = optable.name(node), value(source), value(node)
    if after is None:  # several tensors
        keeps = op in optable.VIEW or node.target is torch.ops.higher_order.autograd_function_apply
        return axes if keeps and isinstance(traced(node), (tuple, list)) else None
    if before is None:  # one of several
        return axes if after.dim() == len(axes) else None
    if op in _MOVES:
        return _moved(node, before, axes)
    if op in _MERGES:
        return _merged(_sizes(before), _sizes(after), axes)
    return axes if before.dim() == after.dim() else None


def _moved(node: fx.Node, before: torch.Tensor, axes: Axes) -> Axes | None:
    """Run the op on a tensor whose strides tell its axes."""
    marked = torch.empty_strided([2] * before.dim(), [1 << i for i in range(before.dim())], device="meta")
    if optable.name(node) == "squeeze":
        return None if len(node.args) < 2 else _without(axes, node.args[1], before)
    args = fx.map_arg(node.args[1:], lambda arg: arg)
    move = getattr(marked, optable.name(node))
    made = move(*args, **{key: arg for key, arg in node.kwargs.items() if key != "input"})
    by_stride = {1 << i: axes[i] for i in range(before.dim())}
    if optable.name(node) == "unsqueeze":
        at = optable.argument(node, 1, "dim") % made.dim()
        return (*axes[:at], frozenset(), *axes[at:])
    return tuple(by_stride[stride] for stride in made.stride())


def _without(axes: Axes, dim: Any, before: torch.Tensor) -> Axes | None:
    if not isinstance(dim, int):
        return None
    at = dim % before.dim()
    return (*axes[:at], *axes[at + 1 :]) if before.shape[at] == 1 else axes


def _merged(before: Sequence[int], after: Sequence[int], axes: Axes) -> Axes | None:
    """Match runs of axes with equal products: what is split or joined comes from all axes of its run."""
    made: list[frozenset[int]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right, start, first = 1, 1, i, j
        while i == start or j == first or left != right:
            if i < len(before) and (left <= right or j >= len(after)):
                left, i = left * before[i], i + 1
            elif j < len(after):
                right, j = right * after[j], j + 1
            elif left == right:
                break
            else:
                return None
        run = frozenset().union(*(axes[k] for k in range(start, i) if before[k] != 1))
        made += [run] * (j - first)
    return tuple(made)


def _sizes(tensor: torch.Tensor) -> list[int]:
    """Return sizes as numbers; symbolic ones as their hints, so that nothing is specialised."""
    return [size if isinstance(size, int) else int(size.node.hint) for size in tensor.shape]
