"""Maps from logits to the mixing matrix H_res. A new projection is one small class and one line in PROJECTIONS."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mhc_compile.errors import ConfigError
from mhc_compile.ops import reference

SMOOTH = 1e-6  # hc_eps of DeepSeek-V4's models


class Projection(Protocol):
    """A map `[..., m]` logits -> `[..., n, n]`, with its own vector-Jacobian product."""

    def width(self, n: int) -> int:
        """Return the number m of logits per token."""

    def start(self, n: int, q: float) -> Tensor:
        """Return logits `[m]` (fp64) whose image is (1 - nq) I + q 11^T, or I if nothing else is possible."""

    def apply(self, logits: Tensor, n: int, iters: int) -> Tensor:
        """Return H_res, in plain torch: the specification."""

    def run(self, logits: Tensor, n: int, iters: int) -> Tensor:
        """Return the same as `apply`, as fast as plain torch can."""

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
        return reference.sinkhorn(logits.unflatten(-1, (n, n)), iters, reference.lasting(n))

    def run(self, logits: Tensor, n: int, iters: int) -> Tensor:
        """Return the same, step by step in place with the tokens last, so that every step is one vectorised sweep.

        It divides, and sums in the order of the index, so that the bits depend on no number of tokens: the start is
        exact to the bit (`init.bias`), which a product with the reciprocal would not be.
        """
        return _tokens_first(_iterate(logits, n, iters), logits).view(*logits.shape[:-1], n, n)

    def vjp(self, logits: Tensor, grad: Tensor, n: int, iters: int) -> Tensor:
        """Return the exact gradient of the unrolled iteration.

        Each half step is M' = M / s with s the sums of M. What is passed back is G = M dM, the gradient of log M:
        G = G' - M' sum(G'), which is bounded where dM = (dM' - sum(dM' M')) / s is not. The iterates are made again
        in one buffer that lives only here.
        """
        g = _tokens_last(grad.flatten(-2), n)
        steps = g.new_empty((2 * iters, *g.shape))
        g.mul_(_iterate(logits, n, iters, steps))
        for t in reversed(range(2 * iters)):
            g.addcmul_(steps[t], g.sum(t % 2, keepdim=True), value=-1)
        return _tokens_first(g, logits)


def _iterate(logits: Tensor, n: int, iters: int, kept: Tensor | None = None) -> Tensor:
    """Return `[n, n, T]` what `reference.sinkhorn` does; keep every half step in `[2 iters, n, n, T]`, where given."""
    z = _tokens_last(logits, n)
    z.sub_(z.amax(0, keepdim=True))
    weight = z.amax(1, keepdim=True)
    z.sub_(weight)
    weight.exp_()
    lasts = reference.lasting(n)
    scale = torch.zeros_like(z) if iters > lasts else None
    m = z.exp_() if scale is None else z.exp()
    for t in range(2 * iters):
        if scale is not None and t and t % (2 * lasts) == 0:
            m = (z - scale).exp_()
        whole = m if t else m * weight
        total = _total(whole, t % 2) if kept is None else whole.sum(t % 2, keepdim=True)
        m = torch.div(m, total, out=m if kept is None else kept[t])
        if scale is not None:
            scale.add_(total.log_())
    if kept is not None:
        kept[0].mul_(weight)
    return m


def _total(m: Tensor, dim: int) -> Tensor:
    """Sum over an axis, in the order of the index."""
    if m.shape[dim] == 1:
        return m.clone()
    first, second, *rest = m.unbind(dim)
    total = torch.add(first, second)
    for part in rest:
        total += part
    return total.unsqueeze(dim)


def _tokens_last(rows: Tensor, n: int) -> Tensor:
    """Copy `[..., n n]` to `[n, n, T]`."""
    return rows.reshape(-1, n * n).t().clone(memory_format=torch.contiguous_format).view(n, n, -1)


def _tokens_first(m: Tensor, like: Tensor) -> Tensor:
    """Copy `[n, n, T]` back to the shape of `like`, `[..., n n]`."""
    return m.flatten(0, 1).t().contiguous().view(like.shape)


class SmoothSinkhorn(Sinkhorn):
    """Sinkhorn-Knopp with `SMOOTH` in every sum but the first (DeepSeek-V4); it is no option of its own."""

    def apply(self, logits: Tensor, n: int, iters: int) -> Tensor:
        """Return the iteration's value after `iters` steps."""
        return reference.smooth_sinkhorn(logits.unflatten(-1, (n, n)), iters, SMOOTH)

    def run(self, logits: Tensor, n: int, iters: int) -> Tensor:
        """Return the same with the tokens last; its bits depend on no number of tokens."""
        *_, m = _smooth_steps(logits, n, iters)
        return _tokens_first(m, logits).view(*logits.shape[:-1], n, n)

    def vjp(self, logits: Tensor, grad: Tensor, n: int, iters: int) -> Tensor:
        """Return the exact gradient of the unrolled iteration, as `Sinkhorn` does, and through the softmax."""
        first, *steps = _smooth_steps(logits, n, iters)
        *_, last = steps
        g = _tokens_last(grad.flatten(-2), n).mul_(last)
        for t, made in reversed(list(enumerate(steps, 1))):
            g.addcmul_(made, g.sum(t % 2, keepdim=True), value=-1)
        g.mul_(first / (first + SMOOTH))
        return _tokens_first(g.addcmul_(first, g.sum(0, keepdim=True), value=-1), logits)


def _smooth_steps(logits: Tensor, n: int, iters: int) -> list[Tensor]:
    """Return the softmax `[n, n, T]` of `reference.smooth_sinkhorn`, and what every half step behind it makes."""
    z = _tokens_last(logits, n)
    z.sub_(z.amax(0, keepdim=True)).exp_()
    steps = [z.div_(_total(z, 0))]
    m = z + SMOOTH
    for t in range(1, 2 * iters):
        m = m / _total(m, t % 2).add_(SMOOTH)
        steps.append(m)
    return steps


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
        one = logits.sum(-1, keepdim=True) + 1  # the sum of nothing, one per token
        return torch.diag_embed(torch.cat([one] * n, -1))

    run = apply

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
