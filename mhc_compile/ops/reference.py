"""The specification: each op of the mhc IR as plain torch (arXiv 2512.24880, Eq. 3 and 14-19).

Shapes: `...` are token axes (batch, sequence, height, ...), n streams, C features; streams are `[..., n, C]`.
Coefficients are fp32 (fp64 in an fp64 model) whatever the dtype of the streams: products with them promote to fp32,
sums accumulate there, and each result is rounded once. The functions also run on fx proxies, so they ask no tensor
for its shape or dtype; n is passed as an integer.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor


def expand(x: Tensor, n: int) -> Tensor:
    """Copy x into n streams: `[..., C]` to `[..., n, C]`."""
    return torch.stack([x] * n, -2)


def logits(x: Tensor, phi: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Project normalised rows: `(x phi) r`, with r = rsqrt(mean(x^2) + eps) (Eq. 14-16).

    Where the square overflows, as beyond 1.8e19 in fp32, the logits are 0: what an RMSNorm in that dtype gives.

    Args:
        x: rows `[..., K]` of any floating dtype.
        phi: `[K, m]`, fp32.
        eps: added to the mean square.

    Returns:
        The logits `[..., m]` and r `[..., 1]`, both in phi's dtype.
    """
    x = x.type_as(phi)
    r = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return (torch.matmul(x, phi) * r).masked_fill(r == 0, 0), r


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


def lasting(n: int) -> int:
    """Return through how many iterations an entry that underflowed would have stayed below 2e-6.

    After the first iteration the largest entry of each row and column is 1/n^2 or more. From there on an entry grows by
    (n-1)^2 an iteration at most: where n - 1 rows have all they have in one column. What underflows in fp32, subnormals
    included, is below e^-103, and e^88 times that is still nothing.
    """
    return 1 + int(88 / (2 * math.log(n - 1))) if n > 2 else sys.maxsize


def smooth_sinkhorn(logits: Tensor, iters: int, smooth: float) -> Tensor:
    """Sinkhorn-Knopp as DeepSeek-V4 does it: the first columns by a softmax, `smooth` added to it and to later sums.

    That is the code of their release (inference/kernel.py, hc_split_sinkhorn), whose matrix is this one transposed.

    Args:
        logits: `[..., n, n]`.
        iters: number of iterations, >= 1.
        smooth: what is added, 1e-6 in their models.

    Returns:
        A matrix of the same shape with rows summing to 1 less `smooth`, and columns nearly.
    """
    m = torch.softmax(logits, -2) + smooth
    m = m / (m.sum(-1, keepdim=True) + smooth)
    for _ in range(iters - 1):
        m = m / (m.sum(-2, keepdim=True) + smooth)
        m = m / (m.sum(-1, keepdim=True) + smooth)
    return m


def sinkhorn(logits: Tensor, iters: int, lasts: int = 20) -> Tensor:
    """Sinkhorn-Knopp from exp(logits): each iteration makes columns, then rows, sum to 1 (Eq. 9, paper convention).

    The maximum of each column is subtracted first, which the first normalisation cancels; then that of each row, for
    which the first sums make up. So no row or column underflows, whatever the logits: none of exp(logits) has to be
    representable.

    Args:
        logits: `[..., n, n]`.
        iters: number of iterations, >= 1.
        lasts: iterations after which what has underflowed is made again, `lasting(n)`.

    Returns:
        A matrix of the same shape with rows summing to 1 exactly and columns nearly.
    """
    z = logits - logits.amax(-2, keepdim=True).detach()  # the result does not depend on what is subtracted
    low = z.amax(-1, keepdim=True).detach()
    z = z - low
    m, weight, scale = torch.exp(z), torch.exp(low), torch.zeros_like(z)
    for done in range(iters):
        if done and done % lasts == 0:
            m = torch.exp(z - scale)
        columns = (m if done else m * weight).sum(-2, keepdim=True)
        m = m / columns
        rows = m.sum(-1, keepdim=True)
        m = m / rows
        if iters > lasts:
            scale = scale + columns.log() + rows.log()
    return m
