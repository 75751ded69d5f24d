"""Gradients of the pointwise ops, written so that each is a few fused loops: no stack, no select per stream.

Sums over features and streams accumulate in the coefficients' dtype and are rounded once, like the forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mhc_compile.ops import reference, signatures
from mhc_compile.ops.signatures import filled, named


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which streams of `dtype` are summed: fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def read_backward(g: Tensor, x: Tensor, h_pre: Tensor) -> tuple[Tensor, Tensor]:
    """dx_i = h_i du, dh_i = <x_i, du>."""
    wide = g.type_as(h_pre).unsqueeze(-2)
    return (h_pre.unsqueeze(-1) * wide).type_as(x), (x * wide).sum(-1)


def write_backward(
    g: Tensor, x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """DX = H_res^T G, df = H_post G, dH_post_i = <G_i, f>, dH_res_ij = <G_i, X_j>."""
    wide = g.type_as(h_post)
    streams = range(n)
    dx, df = h_res[..., 0, :, None] * wide[..., 0, None, :], h_post[..., 0, None] * wide[..., 0, :]
    for i in streams[1:]:
        dx = dx + h_res[..., i, :, None] * wide[..., i, None, :]
        df = df + h_post[..., i, None] * wide[..., i, :]
    dh_res = torch.stack([(wide[..., i, None, :] * x).sum(-1) for i in streams], -2)
    return dx.type_as(x), df.type_as(f), (wide * f.unsqueeze(-2)).sum(-1), dh_res


class Expand(Function):
    """x `[..., C]` to n copies `[..., n, C]`."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        """Copy."""
        given = named(signatures.Expand, inputs)
        return reference.expand(given.x, given.n)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        """Sum over the streams."""
        return filled(signatures.Expand, x=g.sum(-2, dtype=accumulator(g.dtype)).type_as(g))


class Read(Function):
    """u = H_pre x."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        """Read."""
        given = named(signatures.Read, inputs)
        return reference.read(given.x, given.h_pre, given.n)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep streams and weights."""
        given = named(signatures.Read, inputs)
        ctx.save_for_backward(given.x, given.h_pre)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        """Return the gradients of x and h_pre."""
        dx, dpre = read_backward(g, *ctx.saved_tensors)
        return filled(signatures.Read, x=dx, h_pre=dpre)


class Write(Function):
    """X' = H_res X + H_post^T f."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        """Write."""
        given = named(signatures.Write, inputs)
        return reference.write(given.x, given.f, given.h_post, given.h_res, given.n)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep all operands."""
        given = named(signatures.Write, inputs)
        ctx.save_for_backward(given.x, given.f, given.h_post, given.h_res)
        ctx.n = given.n

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        """Return the gradients of x, f, h_post and h_res."""
        x, f, h_post, h_res = ctx.saved_tensors
        dx, df, dpost, dres = write_backward(g, x, f, h_post, h_res, ctx.n)
        return filled(signatures.Write, x=dx, f=df, h_post=dpost, h_res=dres)


class Readout(Function):
    """The mean over the streams."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        """Average."""
        given = named(signatures.Readout, inputs)
        return reference.readout(given.x, given.n, accumulator(given.x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the number of streams."""
        ctx.n = named(signatures.Readout, inputs).n

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        """Give every stream its share."""
        return filled(signatures.Readout, x=reference.expand(g / ctx.n, ctx.n))
