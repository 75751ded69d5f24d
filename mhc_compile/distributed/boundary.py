"""What crosses the boundary between two stages of a pipeline: streams, packed into one tensor `[..., n C]`.

Inside of a process streams travel as an attribute of their carrier (`backend.carry`), which no send and receive keeps.
So a stage packs them where it ends and unpacks them where it starts. It does so around its call, and not in a module
around it: names of parameters, FSDP2's groups and whoever compiles the stage stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mhc_compile.backend.carry import attach_streams, carried_from, take_streams
from mhc_compile.errors import CarryError
from mhc_compile.model.sites import Flow, OwnerSites
from mhc_compile.model.subclasses import around_calls
from mhc_compile.ops import reference
from mhc_compile.ops.functions import accumulator

_KEY = "_mhc_boundaries"  # in the stage's own __dict__, so that copies and pickles of it keep them
_REMEDY = "A boundary must lie between two connections: hand over the tensor that one block returns and the next takes"


@dataclasses.dataclass(frozen=True)
class Boundary:
    """Streams on their way from one stage to the next.

    Attributes:
        site: name of the site that they come from.
        taker: name of the first that continues them.
        streams: their number n.
        channels: number C of features.
        dims: number of dimensions of the plain tensor.
        axis: its feature axis, negative.
        successors: number of sites of the next stage that continue them.
    """

    site: str
    taker: str
    streams: int
    channels: int
    dims: int
    axis: int
    successors: int

    def pack(self, carrier: Tensor) -> Tensor:
        """Return the streams of a tensor `[..., C]`, but for the place of its feature axis, as `[..., n C]`.

        Where the tensor is no mean of its streams, as behind a norm, it goes along: `[..., (n + 1) C]`.

        Raises:
            CarryError: the tensor does not carry them intact.
        """
        lifted = carried_from(carrier) == (self.site, True)
        streams = take_streams(carrier, self.taker, self.streams)
        if lifted:
            streams = torch.cat([streams, carrier.movedim(self.axis, -1).unsqueeze(-2)], -2)
        return _reshaped(streams, (*streams.shape[:-2], streams.shape[-2] * self.channels))

    def unpack(self, packed: Tensor) -> Tensor:
        """Return a tensor that carries the streams that `pack` packed."""
        rows = _reshaped(packed, (*packed.shape[:-1], packed.shape[-1] // self.channels, self.channels))
        streams, lifted = rows, rows.shape[-2] > self.streams
        if lifted:
            streams = rows[..., : self.streams, :].contiguous()
        carrier = rows[..., self.streams, :] if lifted else _readout(streams)
        carrier = carrier.movedim(-1, self.axis).contiguous()
        attach_streams(carrier, streams, self.site, Flow(successors=self.successors), self.axis, lifted)
        return carrier

    def fits(self, given: Any) -> bool:
        """Tell whether something can be what `pack` made."""
        if not isinstance(given, Tensor) or given.dim() != self.dims or not given.is_floating_point():
            return False
        return given.shape[-1] in (self.streams * self.channels, (self.streams + 1) * self.channels)


def _readout(streams: Tensor) -> Tensor:
    return reference.readout(streams, streams.shape[-2], accumulator(streams.dtype))


class _Reshaped(torch.autograd.Function):
    """The same numbers in another shape, contiguous in both directions, as processes send them; no view.

    Zero-bubble schedules detach in place what they have sent, which torch refuses views.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.shape = x.shape
        return x.contiguous().reshape(shape).data

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.contiguous().reshape(ctx.shape), None


_reshaped: Callable[[Tensor, tuple[int, ...]], Tensor] = _Reshaped.apply  # torch leaves it untyped


def set_boundaries(stage: nn.Module, takes: Boundary | None, gives: Boundary | None) -> None:
    """Let a stage take streams from the stage before, and give streams to the one behind, where there are some."""
    vars(stage)[_KEY] = takes, gives
    around_calls(stage, _cross)


def _cross(stage: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a stage on what processes exchange.

    Raises:
        CarryError: streams that the plan lets cross a boundary do not come in, or do not leave.
    """
    takes, gives = vars(stage)[_KEY]
    if _is_plain(stage):
        takes = gives = None
    if takes is not None:
        which = next((i for i, given in enumerate(args) if takes.fits(given)), None)
        if which is None:
            raise CarryError(
                f"the stage that starts with site {takes.taker!r} got no tensor of {takes.dims} dimensions whose last"
                f" is {takes.streams} x {takes.channels}: the streams of site {takes.site!r}. {_REMEDY}"
            )
        args = (*args[:which], takes.unpack(args[which]), *args[which + 1 :])
    made = call(*args, **kwargs)
    return made if gives is None else _packed(made, gives)


def _is_plain(stage: nn.Module) -> bool:
    """Tell whether the original function was asked for, by `mhc_compile.plain` or for good by `mhc_compile.remove`."""
    return next((each.disabled for each in stage.modules() if isinstance(each, OwnerSites)), True)


def _packed(made: Any, gives: Boundary) -> Any:
    leaves, structure = pytree.tree_flatten(made)
    which = next((i for i, leaf in enumerate(leaves) if (carried_from(leaf) or ("",))[0] == gives.site), None)
    if which is None:
        raise CarryError(
            f"the stage that ends with site {gives.site!r} returns no tensor with its streams, which site"
            f" {gives.taker!r} of the next stage continues. {_REMEDY}"
        )
    leaves[which] = gives.pack(leaves[which])
    return pytree.tree_unflatten(leaves, structure)
