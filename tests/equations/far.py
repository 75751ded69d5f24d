"""Mixing logits that span more than exp can represent, and what Sinkhorn makes of them, by logarithms in fp64."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.equations.helpers import near, normal

KINDS = ("noise", "row", "column", "rows", "both", "cross", "zeros", "levels")


def logits(kind: str, n: int, span: float, seed: int = 0) -> Tensor:
    """`[4, n, n]` in fp32, as the shape of large differences says; "cross" converges slowest and grows most."""
    z, uniform = normal(4, n, n, seed=seed), normal(4, n, n, seed=seed + 1).sigmoid()
    if kind == "noise":
        z = z + span * uniform
    elif kind == "row":
        z[:, 0] -= span
    elif kind == "column":
        z[..., 0] += span
    elif kind == "rows":
        z = z + span * uniform[..., :1]
    elif kind == "both":
        z = z + span / 2 * (uniform[..., :1] + uniform[..., :1, :])
    elif kind == "cross":
        z[:, 1:, 1:] -= span
    elif kind == "zeros":
        z = z - span * (uniform < 0.5)
    else:
        z = z - span / 2 * (3 * uniform).floor()
    return z.float()


def sinkhorn(z: Tensor, iters: int) -> Tensor:
    """H_res in fp64; a normalisation subtracts the logarithm of the sums."""
    z = z.double()
    for _ in range(iters):
        z = z - z.logsumexp(-2, keepdim=True)
        z = z - z.logsumexp(-1, keepdim=True)
    return z.exp()


def value_and_gradient(z: Tensor, grad: Tensor, iters: int) -> tuple[Tensor, Tensor]:
    """H_res and the gradient of z for that of H_res, in fp64."""
    leaf = z.double().requires_grad_()
    made = sinkhorn(leaf, iters)
    return made.detach(), torch.autograd.grad(made, leaf, grad.double())[0]


def check(made: Tensor, found: Tensor, z: Tensor, grad: Tensor, iters: int) -> None:
    """Assert that value and gradient are these to fp32, whose ulp at the span is the error of the differences."""
    span = float(z.amax() - z.amin())
    expected, wanted = value_and_gradient(z, grad, iters)
    near(made, expected, 1e-5 + 1e-7 * span)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=(1e-5 + 1e-7 * span) * float(grad.abs().amax()))
