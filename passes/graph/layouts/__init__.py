"""How tensors lie in memory, and which ops can tell."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.effects import schemas
from mhc_compile.passes.graph.effects.aliases import shares_with

# ops that ask for strides, or work only where they fit
_ASKS = frozenset(
    "view view_as as_strided view_as_complex stride storage_offset data_ptr untyped_storage is_contiguous set resize "
    "resize_as pin_memory".split()
)
# ops that draw a number for each element, in the order in which these lie; the others draw one for each channel
_DRAWS = optable.RANDOM - frozenset("dropout1d dropout2d dropout3d feature_alpha_dropout".split())
_OWN = frozenset("mm bmm addmm baddbmm linear contiguous".split())  # their results lie in order, whatever they read


def in_memory(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return a tensor's axes from the outermost in memory to the innermost; those of an expanded one as they are.

    Of symbolic strides the hints count, so that nothing is specialised.
    """
    strides = [_hint(stride) for stride in tensor.stride()]
    axes = range(tensor.dim())
    if any(strides[i] is None or (strides[i] == 0 and not _is_one(tensor.shape[i])) for i in axes):
        return tuple(axes)
    return tuple(sorted(axes, key=lambda i: (-(strides[i] or 0), i)))


def lies_last(tensor: torch.Tensor, axis: int) -> bool:
    """Tell whether an axis is the innermost in memory, and the others lie in order."""
    last = axis % tensor.dim()
    long = [i for i in range(tensor.dim()) if not _is_one(tensor.shape[i])]
    wanted = [i for i in long if i != last] + [i for i in long if i == last]
    return [i for i in in_memory(tensor) if i in long] == wanted


def is_seen_by(node: fx.Node, overwritten: Collection[fx.Node]) -> bool:
    """Tell whether a node can tell how the tensors lie that it is given.

    A call from outside of torch and an op with graphs of its own may; so does what draws random numbers, and what may
    be a view or a copy, where that is written to.
    """
    if node.op == "output":
        return True
    if not node.op.startswith("call"):
        return False
    op = optable.name(node)
    if op in _ASKS or (op.startswith("_") and not op.startswith("__")):
        return True
    if op in _DRAWS and not optable.drops_nothing(node):
        return True
    return not schemas.is_of_torch(node) or (node in overwritten and bool(shares_with(node)))


def is_own(node: fx.Node) -> bool:
    """Tell whether the layout of what a node makes has nothing to do with that of what it reads."""
    op = optable.name(node)
    if op == "matmul":
        a, b = optable.operand_values(node)
        return a is not None and b is not None and a.dim() >= b.dim()
    return op in _OWN and "memory_format" not in node.kwargs


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _hint(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return None if hint is None else int(hint)
