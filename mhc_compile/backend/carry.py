"""Streams across graphs: they travel as an attribute of the plain tensor that one graph returns and the next takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhc_compile.capture.frames import saving_is_hooked
from mhc_compile.errors import CarryError
from mhc_compile.model.sites import Flow, holder

_ATTRIBUTE = "_mhc_streams"
_REMEDY = (
    "Between blocks that are compiled one by one the tensor must be handed on as it is: no clone, detach, view or"
    " in-place change, no reentrant checkpointing (use_reentrant=False works), no hooks that replace it. Compile the"
    " whole model instead, or end the region there: Config(exclude=...)"
)


class Port(NamedTuple):
    """Where streams enter or leave compiled code.

    Attributes:
        tensor: index of the input or output that they belong to.
        site: name of the site, as the frame knows it.
        phi: index of the input that is the site's phi. Equal layers share code, so it alone tells which site this is.
    """

    tensor: int
    site: str
    phi: int

    def name(self, inputs: Sequence[Any]) -> str:
        """Return the name of the site in its model."""
        site = holder(inputs[self.phi])
        return site.path if site is not None else self.site

    def flow(self, inputs: Sequence[Any]) -> Flow:
        """Return how the plan lets streams flow through the site."""
        site = holder(inputs[self.phi])
        return site.flow if site is not None else Flow()


class _Carried:
    """Streams and what tells that their tensor is still the one they were made with."""

    def __init__(self, tensor: Tensor, streams: Tensor, site: str, flow: Flow) -> None:
        self.version, self.grad_fn = tensor._version, tensor.grad_fn
        self.site, self.flow = site, flow
        self.taker = ""
        self.held: Tensor | None = streams
        self.weak = weakref.ref(streams)

    def belongs_to(self, tensor: Tensor) -> bool:
        return self.version == tensor._version and self.grad_fn is tensor.grad_fn

    def hand_to(self, site: str) -> None:
        """Let go of the streams, where the plan has no other taker: who keeps the plain tensor does not keep them.

        With gradients autograd holds them until backward is through. Inside of a checkpoint it does not, and the block
        will run a second time.
        """
        self.taker = site
        if self.flow.successors == 1 and not saving_is_hooked():
            self.held = None


def attach(tensor: Tensor, streams: Tensor, site: str = "", flow: Flow | None = None) -> None:
    """Let the tensor, which must count its in-place changes, carry its streams; valid as long as nobody changes it.

    Where the plan continues them nowhere, it carries none.
    """
    flow = flow or Flow()
    if flow.successors != 0:
        setattr(tensor, _ATTRIBUTE, _Carried(tensor, streams, site, flow))
        node: Any = tensor.grad_fn
        if node is not None:
            node.metadata[_ATTRIBUTE, tensor.output_nr] = weakref.ref(tensor)  # for _source


def _source(tensor: Tensor) -> Tensor:
    """Return the tensor of which FSDP2 made this alias on its way into a sharded module, to see its backward end."""
    node: Any = tensor.grad_fn
    number = tensor.output_nr
    while node is not None and node.name() == "RegisterPostBackwardFunctionBackward":
        node, number = node.next_functions[number]
    known = node.metadata.get((_ATTRIBUTE, number)) if node is not None and node is not tensor.grad_fn else None
    made: Tensor | None = known() if known is not None else None
    return made if made is not None else tensor


class _Watched(torch.autograd.Function):
    """The streams; backward sends zeros through the plain tensor, whose gradient is what FSDP2's hooks wait for."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, streams: Tensor) -> Tensor:
        ctx.like = tensor.shape, tensor.dtype, tensor.device
        return streams.view_as(streams)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype, device = ctx.like
        return torch.zeros(shape, dtype=dtype, device=device), gradient


_watched: Callable[[Tensor, Tensor], Tensor] = _Watched.apply  # torch leaves it untyped


def _is_fsdp(hook: Any) -> bool:
    return type(getattr(hook, "__self__", None)).__module__.startswith("torch.distributed.fsdp")


def take(tensor: Tensor, site: str, n: int | None = None) -> Tensor:
    """Return the streams that a tensor carries, n of them where n is given.

    Raises:
        CarryError: it carries none, or another number, or was changed since, or its gradient is watched.
    """
    source = _source(tensor)
    carried: _Carried | None = getattr(source, _ATTRIBUTE, None)
    if carried is None:
        raise CarryError(f"site {site!r} continues the streams of the site before, but its input has none. {_REMEDY}")
    if not carried.belongs_to(source):
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
    live = [each for each in (tensor, source) if each.requires_grad]
    hooks = [hook for each in live for hook in (each._backward_hooks or {}).values()]
    if not all(map(_is_fsdp, hooks)) or any(each.retains_grad for each in live):
        raise CarryError(
            f"the input of site {site!r} has a gradient hook or retain_grad(), but its gradient flows through the"
            f" streams, not through the tensor. {_REMEDY}"
        )
    carried.hand_to(site)
    if hooks or source is not tensor:
        streams = _watched(tensor, streams)
    return streams


def refuse(tensor: Tensor, site: str, flow: Flow) -> None:
    """Check that a tensor brings no streams to a site that starts its own, where it brought none to upgrade either.

    Raises:
        CarryError: it carries streams that another site of the same model continues.
    """
    tensor = _source(tensor)
    carried: _Carried | None = getattr(tensor, _ATTRIBUTE, None)
    if carried is None or not flow.starts or carried.flow.plan is not flow.plan or not carried.belongs_to(tensor):
        return
    raise CarryError(
        f"site {site!r} starts streams, but its input carries those of site {carried.site!r}, which the plan continues"
        " elsewhere: the blocks run in another order than upgrade saw. Run them in that order, or remove(model) and"
        " upgrade it as it runs now; to start anew here on purpose, hand over x.clone()"
    )


def _counting(tensor: Tensor) -> Tensor:
    """Return a tensor that counts its in-place changes; those made in inference mode do not, so they are copied."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def connect(
    compiled: Callable[..., Any],
    takes: Sequence[Port],
    gives: Sequence[Port],
    starts: Sequence[Port] = (),
    n: int | None = None,
) -> Callable[..., Sequence[Any]]:
    """Wrap compiled code: streams of inputs become further inputs, further outputs become streams of outputs.

    Args:
        compiled: the graph's code, with one more input per entry of `takes` and one more output per entry of `gives`.
        takes: inputs whose streams the code needs, and the sites that need them.
        gives: outputs whose streams are returned, and the sites that they come from.
        starts: inputs that must carry none, and the sites that start streams with them.
        n: number of streams that the code was compiled for.
    """
    if not takes and not gives and not starts:
        return compiled

    def run(*inputs: Any) -> Sequence[Any]:
        for port in starts:
            refuse(inputs[port.tensor], port.name(inputs), port.flow(inputs))
        outputs = compiled(*inputs, *(take(inputs[port.tensor], port.name(inputs), n) for port in takes))
        plain = [*outputs[: len(outputs) - len(gives)]]
        for port, streams in zip(gives, outputs[len(plain) :], strict=True):
            plain[port.tensor] = _counting(plain[port.tensor])
            attach(plain[port.tensor], streams, port.name(inputs), port.flow(inputs))
        return plain

    return run
