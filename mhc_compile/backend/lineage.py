"""What autograd's graph tells of a tensor: which carrier hooks made it of, and whether a site had a part in it."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

from torch import Tensor, nn

from mhc_compile.model.sites import Flow

OF_FSDP, OF_MODULES = "RegisterPostBackwardFunctionBackward", "BackwardHookFunctionBackward"  # nodes of hooks
_LEAF = "torch::autograd::AccumulateGrad"
_KEY = "_mhc_carrier"


class _Mark(NamedTuple):
    """What the node that made a carrier keeps of it."""

    carrier: weakref.ref[Tensor]
    flow: Flow


def mark(carrier: Tensor, flow: Flow) -> None:
    """Let autograd's node of a carrier know it, and how its streams flow on."""
    node: Any = carrier.grad_fn
    if node is not None:
        node.metadata[_KEY, carrier.output_nr] = _Mark(weakref.ref(carrier), flow)


def before_hooks(tensor: Tensor) -> Tensor:
    """Return the tensor that hooks made this one of, where they did.

    FSDP2 hands on aliases of the inputs, by an autograd node that tells it when a module's backward ends; modules with
    full backward hooks do so with what comes in and what goes out.
    """
    node: Any = tensor.grad_fn
    number = tensor.output_nr
    while node is not None and node.name() in (OF_FSDP, OF_MODULES):
        node, number = node.next_functions[number]
    known = node.metadata.get((_KEY, number)) if node is not None and node is not tensor.grad_fn else None
    made: Tensor | None = known.carrier() if known is not None else None
    return made if made is not None else tensor


def is_first(tensor: Tensor, flow: Flow, axis: int = -1) -> bool:
    """Tell whether surely no site of a region had a part in a tensor: the layers before were left out.

    Without gradients nothing tells. Nor behind a leaf that is no parameter, but has as many features: there somebody
    has detached, such as a reentrant checkpoint.

    Args:
        tensor: what comes to a site of the region.
        flow: how streams flow through that site.
        axis: the tensor's feature axis.
    """
    pending: list[Any] = [tensor.grad_fn]
    seen = set[Any]()
    while pending:
        if (node := pending.pop()) is None:
            return False
        marks = (held for held in node.metadata.values() if isinstance(held, _Mark))
        if not all(_elsewhere(each, flow) for each in marks):
            return False
        if node.name() == _LEAF and _hides(node.variable, tensor.shape[axis]):
            return False
        seen.add(node)
        pending += {before for before, _ in node.next_functions if before is not None} - seen
    return True


def _hides(leaf: Tensor, channels: int) -> bool:
    """Tell whether a leaf may be a detached hidden state: what audio models are given is a leaf, too."""
    return not isinstance(leaf, nn.Parameter) and channels in leaf.shape


def _elsewhere(mark: _Mark, flow: Flow) -> bool:
    """Tell whether a mark is of another region of the same model."""
    return flow.plan is not None and mark.flow.plan is flow.plan and mark.flow.region != flow.region
