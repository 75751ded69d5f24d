"""The norms that the fused ops take in: what a branch makes of its input first, and its gradients.

A norm is "rms" (`u rsqrt(mean(u^2) + eps) weight`), "rms_cast" (the same, rounded to u's dtype before its weight, as
Hugging Face's Llama does), "layer" (`(u - mean(u)) rsqrt(var(u) + eps) weight + shift`) or "none". It works on the read
in its dtype, computes in the coefficients' dtype and rounds its result once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mhc_compile.ops.connections import by_token

NORMS = ("none", "rms", "rms_cast", "layer")


def apply(
    u: Tensor, norm: str, weight: Tensor | None, shift: Tensor | None, eps: float, wide: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise the last axis.

    Args:
        u: `[..., C]`.
        norm: one of NORMS.
        weight: `[C]` or None.
        shift: `[C]` or None, of "layer" only.
        eps: added to the mean square or variance.
        wide: the dtype to compute in.

    Returns:
        The result `[..., C]` in u's dtype, and `[..., 1]` in the wide dtype the mean (of "layer") and the inverse
        deviation; what a norm has not is of shape `[0]`.
    """
    none = u.new_empty(0, dtype=wide)
    if norm == "none":
        return u, none, none.clone()
    x = u.to(wide)
    mean = x.mean(-1, keepdim=True) if norm == "layer" else none
    centred = x - mean if norm == "layer" else x
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    out = centred * rstd
    if norm == "rms_cast":
        out = out.type_as(u).to(wide)
    if weight is not None:
        out = out * weight
    if shift is not None:
        out = out + shift
    return out.type_as(u), mean, rstd


def backward(
    g: Tensor, u: Tensor, norm: str, weight: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of u, in rstd's dtype, and of weight and shift, in theirs (`[0]` where there is none)."""
    if norm == "none":
        return g, rstd.new_empty(0), rstd.new_empty(0)
    g, x = g.type_as(rstd), u.type_as(rstd)
    hat = (x - mean if norm == "layer" else x) * rstd
    dhat = g if weight is None else g * weight
    du = dhat - hat * (dhat * hat).mean(-1, keepdim=True)
    if norm == "layer":
        du = du - dhat.mean(-1, keepdim=True)
    hat = hat.type_as(u).type_as(rstd) if norm == "rms_cast" else hat  # what the weight was multiplied with
    dweight = rstd.new_empty(0) if weight is None else by_token(g * hat).sum(0).type_as(weight)
    dshift = rstd.new_empty(0) if shift is None else by_token(g).sum(0).type_as(shift)
    return du * rstd, dweight, dshift
