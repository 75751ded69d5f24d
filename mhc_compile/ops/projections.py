"""Maps from logits to the mixing matrix H_res. A new projection is one small class and one line in PROJECTIONS."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mhc_compile.errors import ConfigError
from mhc_compile.ops import reference


class Projection(Protocol):
    """A map `[..., m]` logits -> `[..., n, n]`, with its own vector-Jacobian product."""

    def width(self, n: int) -> int:
        """Return the number m of logits per token."""

    def start(self, n: int, q: float) -> Tensor:
        """Return logits `[m]` (fp64) whose image is (1 - nq) I + q 11^T, or I if nothing else is possible."""

    def apply(self, logits: Tensor, n: int, iters: int) -> Tensor:
        """Return H_res, in plain torch: the specification."""

    def vjp(self, logits: Tensor, grad: Tensor, n: int, iters: int) -> Tensor:
        """Return the gradient of the logits for the gradient `[..., n, n]` of H_res."""


class Sinkhorn:
    """Doubly stochastic matrices by Sinkhorn-Knopp (paper Eq. 9)."""

    def width(self, n: int) -> int:
        """Return n^2."""
        return n * n

    def start(self, n: int, q: float) -> Tensor:
        """Return beta I with beta = ln((1 - (n-1) q) / q)."""
        beta = torch.log(torch.tensor((1 - (n - 1) * q) / q, dtype=torch.float64))
        return (beta * torch.eye(n, dtype=torch.float64)).flatten()

    def apply(self, logits: Tensor, n: int, iters: int) -> Tensor:
        """Return the iteration's value after `iters` steps."""
        return reference.sinkhorn(logits.unflatten(-1, (n, n)), iters)

    def vjp(self, logits: Tensor, grad: Tensor, n: int, iters: int) -> Tensor:
        """Return the exact gradient of the unrolled iteration.

        Each half step is M' = M / s with s the sums of M, so dM = (dM' - sum(dM' M')) / s. The iterates are
        recomputed, tokens last so that every step is one vectorised sweep, and live only here.
        """
        tokens = logits.shape[:-1]
        m = logits.reshape(-1, n * n).t().contiguous().view(n, n, -1)  # [n, n, T]
        m = torch.exp(m - m.amax((0, 1)))
        steps: list[tuple[Tensor, Tensor, int]] = []
        start = m
        for _ in range(iters):
            for dim in (0, 1):
                s = m.sum(dim, keepdim=True)
                m = m / s
                steps.append((m, s, dim))
        g = grad.reshape(-1, n * n).t().contiguous().view(n, n, -1)
        for m, s, dim in reversed(steps):
            g = (g - (g * m).sum(dim, keepdim=True)).div_(s)
        return (g * start).view(n * n, -1).t().reshape(*tokens, n * n)


class Identity:
    """H_res = I: no mixing and no logits (the iHC of shipped models)."""

    def width(self, n: int) -> int:
        """Return 0."""
        return 0

    def start(self, n: int, q: float) -> Tensor:
        """Return no logits."""
        return torch.zeros(0, dtype=torch.float64)

    def apply(self, logits: Tensor, n: int, iters: int) -> Tensor:
        """Return the identity for every token."""
        return torch.eye(n).type_as(logits) + logits.sum(-1)[..., None, None]  # the sum of nothing, one per token

    def vjp(self, logits: Tensor, grad: Tensor, n: int, iters: int) -> Tensor:
        """Return an empty gradient."""
        return torch.zeros_like(logits)


PROJECTIONS: dict[str, Projection] = {"sinkhorn": Sinkhorn(), "identity": Identity()}


def get(name: str) -> Projection:
    """Return the registered projection of that name.

    Raises:
        ConfigError: there is none; the message lists those that exist.
    """
    if name not in PROJECTIONS:
        raise ConfigError(f"projection must be one of {', '.join(map(repr, PROJECTIONS))}, not {name!r}")
    return PROJECTIONS[name]
