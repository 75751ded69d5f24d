"""Gradients of the pointwise ops, written so that each is a few fused loops: no stack, no select per stream.

Sums over features and streams accumulate in the coefficients' dtype and are rounded once, like the forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mhc_compile.ops import reference


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
    def forward(x: Tensor, n: int) -> Tensor:
        """Copy."""
        return reference.expand(x, n)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """Sum over the streams."""
        return g.sum(-2, dtype=accumulator(g.dtype)).type_as(g), None


class Read(Function):
    """u = H_pre x."""

    @staticmethod
    def forward(x: Tensor, h_pre: Tensor, n: int) -> Tensor:
        """Read."""
        return reference.read(x, h_pre, n)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        """Keep streams and weights."""
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of x and h_pre."""
        return *read_backward(g, *ctx.saved_tensors), None


class Write(Function):
    """X' = H_res X + H_post^T f."""

    @staticmethod
    def forward(x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor, n: int) -> Tensor:
        """Write."""
        return reference.write(x, f, h_post, h_res, n)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep all operands."""
        ctx.save_for_backward(*inputs[:4])
        ctx.n = inputs[4]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        """Return the gradients of x, f, h_post and h_res."""
        x, f, h_post, h_res = ctx.saved_tensors
        return *write_backward(g, x, f, h_post, h_res, ctx.n), None


class Readout(Function):
    """The mean over the streams."""

    @staticmethod
    def forward(x: Tensor, n: int) -> Tensor:
        """Average."""
        return reference.readout(x, n, accumulator(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        """Keep the number of streams."""
        ctx.n = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """Give every stream its share."""
        return reference.expand(g / ctx.n, ctx.n), None
