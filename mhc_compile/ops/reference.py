"""The specification: each op of the mhc IR as plain torch (arXiv 2512.24880, Eq. 3 and 14-19).

Shapes: `...` are token axes (batch, sequence, height, ...), n streams, C features; streams are `[..., n, C]`.
Coefficients are fp32 (fp64 in an fp64 model) whatever the dtype of the streams: products with them promote to fp32,
sums accumulate there, and each result is rounded once. The functions also run on fx proxies, so they ask no tensor
for its shape or dtype; n is passed as an integer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expand(x: Tensor, n: int) -> Tensor:
    """Copy x into n streams: `[..., C]` to `[..., n, C]`."""
    return torch.stack([x] * n, -2)


def logits(x: Tensor, phi: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Project normalised rows: `(x phi) r`, with r = rsqrt(mean(x^2) + eps) (Eq. 14-16).

    Args:
        x: rows `[..., K]` of any floating dtype.
        phi: `[K, m]`, fp32.
        eps: added to the mean square.

    Returns:
        The logits `[..., m]` and r `[..., 1]`, both in phi's dtype.
    """
    x = x.type_as(phi)
    r = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return torch.matmul(x, phi) * r, r


def read(x: Tensor, h_pre: Tensor, n: int) -> Tensor:
    """H_pre x: streams `[..., n, C]` and weights `[..., n]` to the branch's input `[..., C]`, in x's dtype."""
    total = h_pre[..., 0, None] * x[..., 0, :]
    for i in range(1, n):
        total = total + h_pre[..., i, None] * x[..., i, :]
    return total.type_as(x)


def write(x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor, n: int) -> Tensor:
    """H_res x + H_post^T f (Eq. 3).

    Args:
        x: streams `[..., n, C]`.
        f: the branch's output `[..., C]`.
        h_post: write weights `[..., n]`.
        h_res: mixing matrix `[..., n, n]`; row i makes the new stream i.
        n: number of streams.

    Returns:
        The new streams `[..., n, C]` in x's dtype.
    """
    total = h_res[..., :, 0, None] * x[..., 0, None, :]
    for j in range(1, n):
        total = total + h_res[..., :, j, None] * x[..., j, None, :]
    return (total + h_post[..., :, None] * f[..., None, :]).type_as(x)


def readout(x: Tensor, n: int, acc: torch.dtype = torch.float32) -> Tensor:
    """Mean over the streams, accumulated in `acc`: `[..., n, C]` to `[..., C]` in x's dtype."""
    total = x[..., 0, :].to(acc)
    for i in range(1, n):
        total = total + x[..., i, :]
    return (total / n).type_as(x)


def sinkhorn(logits: Tensor, iters: int) -> Tensor:
    """Sinkhorn-Knopp from exp(logits): each iteration makes columns, then rows, sum to 1 (Eq. 9, paper convention).

    The maximum of each matrix is subtracted first, which the first normalisation cancels.

    Args:
        logits: `[..., n, n]`.
        iters: number of iterations, >= 1.

    Returns:
        A matrix of the same shape with rows summing to 1 exactly and columns nearly.
    """
    m = torch.exp(logits - logits.amax((-2, -1), keepdim=True))
    for _ in range(iters):
        m = m / m.sum(-2, keepdim=True)
        m = m / m.sum(-1, keepdim=True)
    return m
