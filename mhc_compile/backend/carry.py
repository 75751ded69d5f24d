"""Streams across graphs: they travel as an attribute of their carrier, the tensor that one graph hands to the next."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhc_compile.backend.lineage import OF_FSDP, OF_MODULES, before_hooks, is_first, mark
from mhc_compile.capture.frames import saving_is_hooked
from mhc_compile.capture.graphs import copies
from mhc_compile.errors import CarryError
from mhc_compile.model.sites import Flow, SiteModule, holder
from mhc_compile.passes.graph.layouts.sharded import gathering, held, placements_of

_ATTRIBUTE = "_mhc_streams"
_REMEDY = (
    "Between blocks that are compiled one by one the tensor must be handed on as it is: no clone, detach, view or"
    " in-place change, no reentrant checkpointing (use_reentrant=False works), no hooks that replace it. Compile the"
    " whole model instead, or upgrade it with a region that starts there: Config(split=...) with a glob of that site"
)


class Port(NamedTuple):
    """Where streams enter or leave compiled code.

    Attributes:
        tensor: index of their carrier among the inputs or outputs.
        site: name of the site, as the frame knows it.
        phi: index of the input that is the site's phi: equal layers share code, and phi tells which of them runs. None
            where no input is.
        axis: the feature axis of the tensor, negative.
        lifted: True where the tensor is no mean of its streams: an op that is not linear stands in between.
    """

    tensor: int
    site: str
    phi: int | None
    axis: int = -1
    lifted: bool = False

    def name(self, inputs: Sequence[Any]) -> str:
        """Return the name of the site in its model."""
        site = self.holder(inputs)
        return site.path if site is not None else self.site

    def flow(self, inputs: Sequence[Any]) -> Flow:
        """Return how the plan lets streams flow through the site."""
        site = self.holder(inputs)
        return site.flow if site is not None else Flow()

    def holder(self, inputs: Sequence[Any]) -> SiteModule | None:
        """Return the site itself, where it is known."""
        return holder(inputs[self.phi]) if self.phi is not None else None


class _Carried:
    """Streams, and what tells whether their carrier has changed since they were made."""

    def __init__(self, carrier: Tensor, streams: Tensor, site: str, flow: Flow, axis: int, lifted: bool) -> None:
        self.version, self.grad_fn = carrier._version, carrier.grad_fn
        self.site, self.flow, self.axis, self.lifted = site, flow, axis, lifted
        self.taker = ""
        self.held: Tensor | None = streams
        self.weak = weakref.ref(streams)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Leave streams behind where their carrier is saved or copied: in its place comes what torch.load accepts."""
        return set, ()

    def belongs_to(self, carrier: Tensor) -> bool:
        return self.version == carrier._version and self.grad_fn is carrier.grad_fn

    def hand_to(self, site: str) -> None:
        """Note who takes the streams, and let go of them where the plan has no other taker.

        So a carrier that the user keeps does not keep its streams alive. With gradients, autograd holds them until the
        backward is through. Inside a checkpoint it does not hold them, and the block will take them a second time.
        """
        self.taker = site
        if self.flow.successors == 1 and not saving_is_hooked():
            self.held = None


def attach_streams(
    carrier: Tensor, streams: Tensor, site: str = "", flow: Flow | None = None, axis: int = -1, lifted: bool = False
) -> None:
    """Let a tensor carry streams, unless the plan continues them nowhere.

    Args:
        carrier: `[..., C]` but for the place of its feature axis; it must count its in-place changes, since the
            streams are valid only as long as nobody changes it.
        streams: `[..., n, C]`.
        site: name of the site that they come from.
        flow: how they flow on.
        axis: the carrier's feature axis.
        lifted: the carrier is no mean of the streams.
    """
    flow = flow or Flow()
    if flow.successors != 0:
        setattr(carrier, _ATTRIBUTE, _Carried(carrier, streams, site, flow, axis, lifted))
        mark(carrier, flow)


class _WithGradient(torch.autograd.Function):
    """Returns the streams; its backward also sends a gradient to a tensor that hooks watch.

    That is the sum over the streams, as if each were the tensor, so hooks see at the start what they see in the plain
    model. What hooks make of it replaces what the streams have in common: either the tensor stands for that, and the
    streams get the rest, or the carrier, from which hooks made the tensor, gets the sum with a minus.
    """

    @staticmethod
    def forward(ctx: Any, streams: Tensor, tensor: Tensor, carrier: Tensor | None, axis: int) -> Tensor:
        ctx.axis, ctx.by_carrier, ctx.gather = axis, carrier is not None, gathering(tensor)
        return streams.view_as(streams)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        total = gradient.sum(-2, dtype=torch.promote_types(gradient.dtype, torch.float32))
        part = total.type_as(gradient)
        seen = ctx.gather(part.movedim(-1, ctx.axis))
        if ctx.by_carrier:
            return gradient, seen, -seen, None
        return gradient - (part / gradient.shape[-2]).unsqueeze(-2), seen, None, None


class _WithZeros(torch.autograd.Function):
    """Returns the streams; its backward sends zeros to the tensor, since somebody waits for its gradient."""

    @staticmethod
    def forward(ctx: Any, streams: Tensor, tensor: Tensor) -> Tensor:
        ctx.like, ctx.gather = (held(tensor).shape, tensor.dtype, tensor.device), gathering(tensor)
        return streams.view_as(streams)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype, device = ctx.like
        return gradient, ctx.gather(torch.zeros(shape, dtype=dtype, device=device))


_with_gradient: Callable[..., Tensor] = _WithGradient.apply  # torch leaves them untyped
_with_zeros: Callable[..., Tensor] = _WithZeros.apply


def _is_fsdp(hook: Any) -> bool:
    return type(getattr(hook, "__self__", None)).__module__.startswith("torch.distributed.fsdp")


def _watched(tensor: Tensor) -> bool:
    """Tell whether somebody else than FSDP2 looks at the tensor's gradient."""
    hooks = (tensor._backward_hooks or {}).values() if tensor.requires_grad else ()
    return not all(map(_is_fsdp, hooks)) or (tensor.requires_grad and tensor.retains_grad)


def _observed(streams: Tensor, tensor: Tensor, carrier: Tensor, carried: _Carried, site: str) -> Tensor:
    """Return the streams such that hooks on the tensor, or on the carrier that it was made of, get their gradient.

    Raises:
        CarryError: the carrier's gradient is watched, but the carrier is no mean of its streams.
    """
    if _watched(carrier):
        if carried.lifted:
            raise CarryError(
                f"the input of site {site!r} has a gradient hook or retain_grad(), but between the site before and this"
                f" tensor stands an op that is not linear, so that its gradient is not that of its streams. {_REMEDY}"
            )
        return _with_gradient(streams, tensor, None, carried.axis)
    if tensor is carrier:
        awaited = tensor._backward_hooks or placements_of(tensor)  # AOTAutograd has no zeros for DTensors
        return _with_zeros(streams, tensor) if awaited else streams
    node: Any = tensor.grad_fn
    by_modules = _watched(tensor)
    while not by_modules and node is not None and node.name() in (OF_FSDP, OF_MODULES):
        by_modules, node = node.name() == OF_MODULES, node.next_functions[0][0]
    return _with_gradient(streams, tensor, carrier, carried.axis) if by_modules else _with_zeros(streams, tensor)


def take_streams(tensor: Tensor, site: str, n: int | None = None) -> Tensor:
    """Return the streams `[..., n, C]` that a tensor carries.

    Args:
        tensor: the carrier, or what hooks made of it.
        site: name of the site that takes them.
        n: how many streams there must be; None allows any number.

    Raises:
        CarryError: it carries none or another number, it was changed since, or hooks watch what is not their gradient.
    """
    carrier = before_hooks(tensor)
    carried = getattr(carrier, _ATTRIBUTE, None)
    if not isinstance(carried, _Carried):
        raise CarryError(f"site {site!r} continues the streams of the site before, but its input has none. {_REMEDY}")
    if not carried.belongs_to(carrier):
        raise CarryError(f"the input of site {site!r} was changed in place after its streams were made. {_REMEDY}")
    streams = carried.weak()
    if streams is None:
        raise CarryError(
            f"site {site!r} continues the streams of a tensor, but they were let go when {carried.taker!r} took them:"
            " without gradients, and after backward, a block can take a tensor once. Run the blocks before it again"
        )
    if n is not None and streams.shape[-2] != n:
        raise CarryError(
            f"site {site!r} mixes {n} streams, but its input carries {streams.shape[-2]}: it comes from a model"
            " that was upgraded with another number; upgrade both alike, or hand over x.clone()"
        )
    streams = _observed(streams, tensor, carrier, carried, site)
    carried.hand_to(site)
    return streams


def carried_from(tensor: Any) -> tuple[str, bool] | None:
    """Return the site whose streams a tensor carries, and whether it is no mean of them; None where it has none."""
    carried = getattr(before_hooks(tensor), _ATTRIBUTE, None) if isinstance(tensor, Tensor) else None
    return (carried.site, carried.lifted) if isinstance(carried, _Carried) else None


def refuse_streams(tensor: Tensor, site: str, flow: Flow) -> None:
    """Refuse a tensor that carries streams to a site that starts its own.

    Only where streams start that started at upgrade, too, and only streams of the same model are refused.

    Raises:
        CarryError: it carries streams that another site of the same model continues.
    """
    tensor = before_hooks(tensor)
    carried = getattr(tensor, _ATTRIBUTE, None)
    if not isinstance(carried, _Carried) or not carried.belongs_to(tensor):
        return
    if not flow.starts or carried.flow.plan is not flow.plan:
        return
    raise CarryError(
        f"site {site!r} starts streams, but its input carries those of site {carried.site!r}, which the plan continues"
        " elsewhere: the blocks run in another order than upgrade saw. Run them in that order, or remove(model) and"
        " upgrade it as it runs now; to start anew here on purpose, hand over x.clone()"
    )


def _taken(inputs: Sequence[Any], port: Port, n: int | None) -> Tensor:
    """Return the streams that an input carries, or start them: the plan says so, or LayerDrop left out all before."""
    tensor, site = inputs[port.tensor], port.holder(inputs)
    starts = site is not None and site.entry
    if starts:
        refuse_streams(tensor, port.name(inputs), port.flow(inputs))
    elif carried_from(tensor) is None:
        starts = is_first(tensor, port.flow(inputs), port.axis)
    return copies(tensor, n, port.axis) if starts and n is not None else take_streams(tensor, port.name(inputs), n)


def _counting(tensor: Tensor) -> Tensor:
    """Return a tensor that counts its in-place changes: a copy, where it was made in inference mode."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def connect_graphs(
    compiled: Callable[..., Any],
    takes: Sequence[Port],
    gives: Sequence[Port],
    starts: Sequence[Port] = (),
    n: int | None = None,
) -> Callable[..., Sequence[Any]]:
    """Wrap a graph's compiled code, so that it takes streams from carriers and gives streams to them.

    Args:
        compiled: the graph's code, with one more input per entry of `takes` and one more output per entry of `gives`.
        takes: inputs that carry the streams of further inputs, and the sites that need these.
        gives: outputs that are to carry further outputs, and the sites that these come from.
        starts: inputs that must carry none, and the sites that start streams with them.
        n: number of streams that the code was compiled for; None allows any number.

    Returns:
        Code with the inputs and outputs that the graph has for Dynamo. It raises CarryError as `take_streams` and
        `refuse_streams` do.
    """
    if not takes and not gives and not starts:
        return compiled

    def run(*inputs: Any) -> Sequence[Any]:
        for port in starts:
            refuse_streams(inputs[port.tensor], port.name(inputs), port.flow(inputs))
        outputs = compiled(*inputs, *(_taken(inputs, port, n) for port in takes))
        returned = [*outputs[: len(outputs) - len(gives)]]
        for port, streams in zip(gives, outputs[len(returned) :], strict=True):
            returned[port.tensor] = _counting(returned[port.tensor])
            carrier, site, flow = returned[port.tensor], port.name(inputs), port.flow(inputs)
            attach_streams(carrier, streams, site, flow, port.axis, port.lifted)
        return returned

    return run
