"""Streams across graphs: they travel as an attribute of their carrier, the tensor that one graph hands to the next."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhc_compile.capture.frames import saving_is_hooked
from mhc_compile.errors import CarryError
from mhc_compile.model.sites import Flow, SiteModule, holder

_ATTRIBUTE = "_mhc_streams"
_REMEDY = (
    "Between blocks that are compiled one by one the tensor must be handed on as it is: no clone, detach, view or"
    " in-place change, no reentrant checkpointing (use_reentrant=False works), no hooks that replace it. Compile the"
    " whole model instead, or end the region there: Config(exclude=...)"
)


class Port(NamedTuple):
    """Where streams enter or leave compiled code.

    Attributes:
        tensor: index of their carrier among the inputs or outputs.
        site: name of the site, as the frame knows it.
        phi: index of the input that is the site's phi: equal layers share code, and phi tells which of them runs. None
            where no input is.
    """

    tensor: int
    site: str
    phi: int | None

    def name(self, inputs: Sequence[Any]) -> str:
        """Return the name of the site in its model."""
        site = self._holder(inputs)
        return site.path if site is not None else self.site

    def flow(self, inputs: Sequence[Any]) -> Flow:
        """Return how the plan lets streams flow through the site."""
        site = self._holder(inputs)
        return site.flow if site is not None else Flow()

    def _holder(self, inputs: Sequence[Any]) -> SiteModule | None:
        return holder(inputs[self.phi]) if self.phi is not None else None


class _Carried:
    """Streams, and what tells whether their carrier has changed since they were made."""

    def __init__(self, carrier: Tensor, streams: Tensor, site: str, flow: Flow) -> None:
        self.version, self.grad_fn = carrier._version, carrier.grad_fn
        self.site, self.flow = site, flow
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


def attach_streams(carrier: Tensor, streams: Tensor, site: str = "", flow: Flow | None = None) -> None:
    """Let a tensor carry streams, unless the plan continues them nowhere.

    Args:
        carrier: `[..., C]` but for the place of its feature axis; it must count its in-place changes, since the
            streams are valid only as long as nobody changes it.
        streams: `[..., n, C]`.
        site: name of the site that they come from.
        flow: how they flow on.
    """
    flow = flow or Flow()
    if flow.successors != 0:
        setattr(carrier, _ATTRIBUTE, _Carried(carrier, streams, site, flow))
        node: Any = carrier.grad_fn
        if node is not None:
            node.metadata[_ATTRIBUTE, carrier.output_nr] = weakref.ref(carrier)  # for _before_fsdp


def _before_fsdp(tensor: Tensor) -> Tensor:
    """Return the tensor that FSDP2 made this one of, where it did, at the start of a sharded module's forward.

    FSDP2 hands on aliases of the inputs, by an autograd node that tells it when the module's backward ends.
    """
    node: Any = tensor.grad_fn
    number = tensor.output_nr
    while node is not None and node.name() == "RegisterPostBackwardFunctionBackward":
        node, number = node.next_functions[number]
    known = node.metadata.get((_ATTRIBUTE, number)) if node is not None and node is not tensor.grad_fn else None
    made: Tensor | None = known() if known is not None else None
    return made if made is not None else tensor


class _WithGradientHooks(torch.autograd.Function):
    """Returns the streams; its backward sends zeros to the carrier, since FSDP2's hooks wait for its gradient."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, streams: Tensor) -> Tensor:
        ctx.like = carrier.shape, carrier.dtype, carrier.device
        return streams.view_as(streams)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype, device = ctx.like
        return torch.zeros(shape, dtype=dtype, device=device), gradient


_with_gradient_hooks: Callable[[Tensor, Tensor], Tensor] = _WithGradientHooks.apply  # torch leaves it untyped


def _is_fsdp(hook: Any) -> bool:
    return type(getattr(hook, "__self__", None)).__module__.startswith("torch.distributed.fsdp")


def take_streams(tensor: Tensor, site: str, n: int | None = None) -> Tensor:
    """Return the streams `[..., n, C]` that a tensor carries.

    Args:
        tensor: the carrier, or what FSDP2 made of it.
        site: name of the site that takes them.
        n: how many streams there must be; None allows any number.

    Raises:
        CarryError: it carries none or another number, it was changed since, or its gradient is observed.
    """
    carrier = _before_fsdp(tensor)
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
    live = [each for each in (tensor, carrier) if each.requires_grad]
    hooks = [hook for each in live for hook in (each._backward_hooks or {}).values()]
    if not all(map(_is_fsdp, hooks)) or any(each.retains_grad for each in live):
        raise CarryError(
            f"the input of site {site!r} has a gradient hook or retain_grad(), but its gradient flows through the"
            f" streams, not through the tensor. {_REMEDY}"
        )
    carried.hand_to(site)
    if hooks or carrier is not tensor:
        streams = _with_gradient_hooks(tensor, streams)
    return streams


def refuse_streams(tensor: Tensor, site: str, flow: Flow) -> None:
    """Refuse a tensor that carries streams to a site that starts its own.

    Only where streams start that started at upgrade, too, and only streams of the same model are refused.

    Raises:
        CarryError: it carries streams that another site of the same model continues.
    """
    tensor = _before_fsdp(tensor)
    carried = getattr(tensor, _ATTRIBUTE, None)
    if (
        not isinstance(carried, _Carried)
        or not flow.starts
        or carried.flow.plan is not flow.plan
        or not carried.belongs_to(tensor)
    ):
        return
    raise CarryError(
        f"site {site!r} starts streams, but its input carries those of site {carried.site!r}, which the plan continues"
        " elsewhere: the blocks run in another order than upgrade saw. Run them in that order, or remove(model) and"
        " upgrade it as it runs now; to start anew here on purpose, hand over x.clone()"
    )


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
        outputs = compiled(*inputs, *(take_streams(inputs[port.tensor], port.name(inputs), n) for port in takes))
        returned = [*outputs[: len(outputs) - len(gives)]]
        for port, streams in zip(gives, outputs[len(returned) :], strict=True):
            returned[port.tensor] = _counting(returned[port.tensor])
            attach_streams(returned[port.tensor], streams, port.name(inputs), port.flow(inputs))
        return returned

    return run
