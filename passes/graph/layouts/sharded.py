"""DTensors in a graph: the part of one that this process has, and back.

Streams are plain tensors: of a DTensor, each process widens the part that it has. The functions here stand in graphs,
and all that processes tell one another is torch's redistribution.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx

from mhc_compile.passes.graph.walk import value

Placements = tuple[Any, ...]


class Lying(NamedTuple):
    """How the parts of a tensor lie over processes.

    Attributes:
        like: a node of a DTensor on the same mesh.
        parts: placements of the parts, none of them partial.
    """

    like: fx.Node
    parts: Placements


def placements_of(tensor: Any) -> Placements | None:
    """Return how a DTensor lies on its mesh, None for any other tensor."""
    found = getattr(tensor, "placements", None)
    return found if isinstance(found, tuple) else None


def placements(node: fx.Node) -> Placements | None:
    """Return how a node's DTensor lies on its mesh, None where it computes none."""
    return placements_of(value(node))


def settled(lying: Placements) -> Placements:
    """Return placements without partial sums, which everybody gets whole."""
    from torch.distributed.tensor import Replicate

    return tuple(Replicate() if each.is_partial() else each for each in lying)


def divides(lying: Placements, axis: int) -> bool:
    """Tell whether each process has some of an axis, counted from the front."""
    return any(each.is_shard(axis) for each in lying)


def local_part(x: Any, parts: Placements) -> Tensor:
    """Return this process's part of a DTensor that lies in `parts`."""
    made: Tensor = x.redistribute(placements=parts).to_local()
    return made


def of_parts(part: Tensor, like: Any, parts: Placements, lying: Placements) -> Any:
    """Return the DTensor whose parts, as they lie in `parts`, are given; its mesh and shape are those of `like`."""
    from torch.distributed.tensor import DTensor

    shape, stride = like.shape, like.stride()
    made = DTensor.from_local(part, like.device_mesh, parts, run_check=False, shape=shape, stride=stride)
    return made.redistribute(placements=lying)


SAME = (local_part, of_parts)  # hold, for a process, what their first argument holds


def keeps_parts(node: fx.Node) -> bool:
    """Tell whether one of SAME only names what a process has anyway: nothing goes from one to another."""
    args: Any = node.args
    if node.target is of_parts:
        _, _, parts, lying = args
    else:
        source, parts = args
        lying = placements(source) or ()
    return bool(settled(lying) == parts)


def reads(node: fx.Node) -> list[fx.Node]:
    """Return the inputs whose values a node reads: not the DTensor that another one is like."""
    return node.all_input_nodes[:1] if node.target in SAME else node.all_input_nodes


def redirect(reader: fx.Node, node: fx.Node, other: fx.Node) -> None:
    """Let a node read another value than before."""
    if reader.target in SAME:
        reader.args = (other, *reader.args[1:])
    else:
        reader.replace_input_with(node, other)


def lies(part: fx.Node) -> Lying | None:
    """Return how what a node is a part of lies over processes, None where it is no part."""
    if part.target is local_part:
        return Lying(*cast("Any", part.args[:2]))
    whole = next((user for user in part.users if user.target is of_parts), None)
    return Lying(*cast("Any", whole.args[1:3])) if whole is not None else None


def held(tensor: Tensor) -> Tensor:
    """Return a tensor, or this process's part of a DTensor."""
    lying = placements_of(tensor)
    return tensor if lying is None else local_part(tensor, settled(lying))


def whole(tensor: Any) -> Tensor:
    """Return a tensor, or what all processes together hold of a DTensor; all must call it."""
    made: Tensor = tensor if placements_of(tensor) is None or tensor.is_meta else tensor.full_tensor()
    return made


def gathering(tensor: Any) -> Callable[[Tensor], Tensor]:
    """Return what makes a tensor like this one of this process's part; it does not keep the tensor alive."""
    lying = placements_of(tensor)
    if lying is None:
        return lambda part: part
    like = _Like(tensor.device_mesh, tensor.shape, tensor.stride())
    return functools.partial(of_parts, like=like, parts=settled(lying), lying=lying)


class _Like(NamedTuple):
    device_mesh: Any
    shape: torch.Size
    strides: Sequence[int]

    def stride(self) -> Sequence[int]:
        return self.strides


def passed(tensor: Any, like: Any, given: Placements, made: Placements, grads: Placements) -> Tensor:
    """Return a process's part of a tensor in other placements.

    Args:
        tensor: a DTensor, or the part of one that lies in `given`.
        like: a DTensor on the same mesh.
        given: how the part that comes in lies.
        made: how the part that goes out lies.
        grads: how the gradient lies that a process finds of what goes out.
    """
    from torch.distributed.tensor import DTensor

    whole = tensor
    if not isinstance(tensor, DTensor):
        whole = DTensor.from_local(tensor, like.device_mesh, given, run_check=False)
    part: Tensor = whole.redistribute(placements=made).to_local(grad_placements=grads)
    return part
