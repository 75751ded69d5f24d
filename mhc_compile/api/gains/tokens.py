"""Tokens: laid out in a row, followed where they are moved, and what their streams are like."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor


def flat(t: Tensor, kept: int) -> Tensor:
    """Return `[T, ...]` with the last `kept` axes as they are, in fp64 where the device has it.

    Where a transform of torch.func (vmap) has put the tensor in batches, these are tokens, too.
    """
    t = unwrapped(t).detach()
    wide = torch.float32 if t.device.type == "mps" else torch.float64
    return t.reshape(-1, *t.shape[t.dim() - kept :]).to(wide)


def unwrapped(t: Tensor) -> Tensor:
    """Return the tensor within the wrappers of torch.func, batches first."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(t):
        dim = functorch.maybe_get_bdim(t)
        t = functorch.get_unwrapped(t)
        t = t.movedim(dim, 0) if dim >= 0 else t
    return t


@dataclasses.dataclass(frozen=True)
class Streams:
    """What is measured of streams: squares per token, `[T]`, and of each stream `[n]`.

    Attributes:
        apart: sum over the streams of |x_i - mean|^2.
        size: sum over the streams of |x_i|^2.
        shares: sum over the tokens of <x_i, mean>, by stream.
    """

    apart: Tensor
    size: Tensor
    shares: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Streams:
        """Measure streams `[..., n, C]`; sums accumulate in fp32, or fp64 for fp64."""
        x = unwrapped(x).detach().flatten(0, -3)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = x.mean(-2, keepdim=True)
        norm = torch.linalg.vector_norm
        return cls(
            apart=norm(x - mean, dim=(-2, -1)).square(),
            size=norm(x, dim=(-2, -1)).square(),
            shares=torch.einsum("tnc,tc->n", x, mean.squeeze(-2)),
        )

    def added(self, add: Callable[[Tensor], Tensor]) -> Streams:
        """Return what is measured of all features, where `add` sums over the processes that have others."""
        return Streams(*map(add, (self.apart, self.size, self.shares)))


def moved(streams: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    """Return which token of the streams each token is that an op makes of them.

    The op is applied to the numbers of the tokens, as if these were the streams.

    Args:
        streams: `[..., n, C]`.
        move: the op.
    """
    *lead, n, c = streams.shape
    inner = torch.arange(torch.Size(lead).numel()).view(lead)[..., None, None].expand(*lead, n, c)
    found = move(inner)[..., 0, 0].reshape(-1)
    batches = unwrapped(streams).numel() // max(1, streams.numel())
    offsets = torch.arange(batches) * inner[..., 0, 0].numel()
    return (offsets[:, None] + found).reshape(-1)


def composed(first: Tensor | None, then: Tensor | None) -> Tensor | None:
    """Return one move for two in a row; None moves nothing."""
    if first is None or then is None:
        return then if first is None else first
    return first[then]
