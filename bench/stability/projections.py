"""Two maps to H_res that are doubly stochastic without an iteration, to compare Sinkhorn's with."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mhc_compile.ops import projections


class Permutations:
    """A softmax over all n! permutation matrices (mHC-lite, arXiv 2601.05732)."""

    def width(self, n: int) -> int:
        """Return n!."""
        return math.factorial(n)

    def start(self, n: int, q: float) -> Tensor:
        """Return logits of (1 - nq) I + q 11^T: 11^T / n is the mean of all permutations."""
        weights = torch.full((self.width(n),), n * q / self.width(n), dtype=torch.float64)
        weights[0] += 1 - n * q  # the identity comes first
        return weights.log()

    def apply(self, logits: Tensor, n: int, iters: int) -> Tensor:
        """Return the mixture."""
        mixed: Tensor = (logits.softmax(-1) @ _permutations(n).to(logits)).unflatten(-1, (n, n))
        return mixed

    run = apply

    def vjp(self, logits: Tensor, grad: Tensor, n: int, iters: int) -> Tensor:
        """Return the softmax's gradient."""
        weights = logits.softmax(-1)
        pulled = weights * (grad.flatten(-2) @ _permutations(n).to(grad).T)
        return pulled - weights * pulled.sum(-1, keepdim=True)


class Kronecker:
    """A Kronecker product of doubly stochastic 2 x 2 matrices (KromHC, arXiv 2601.21579), for n = 2^k."""

    def width(self, n: int) -> int:
        """Return k, a logit for each factor."""
        if n & (n - 1):
            raise ValueError(f"a Kronecker product of 2 x 2 matrices needs 2^k streams, not {n}")
        return n.bit_length() - 1

    def start(self, n: int, q: float) -> Tensor:
        """Return equal factors whose product has the diagonal 1 - (n-1) q."""
        k = self.width(n)
        diagonal = (1 - (n - 1) * q) ** (1 / max(1, k))
        return torch.full((k,), math.log(diagonal / (1 - diagonal)), dtype=torch.float64)

    def apply(self, logits: Tensor, n: int, iters: int) -> Tensor:
        """Return the product."""
        return _product([_factor(a, 1 - a) for a in logits.sigmoid().unbind(-1)], logits)

    run = apply

    def vjp(self, logits: Tensor, grad: Tensor, n: int, iters: int) -> Tensor:
        """Return the gradient: the product is linear in each factor."""
        weights = logits.sigmoid()
        factors = [_factor(a, 1 - a) for a in weights.unbind(-1)]
        one = torch.ones_like(logits[..., 0])
        pulled = [
            (grad * _product([*factors[:i], _factor(one, -one), *factors[i + 1 :]], logits)).sum((-2, -1))
            for i in range(len(factors))
        ]
        return torch.stack(pulled, -1) * weights * (1 - weights)


def _factor(diagonal: Tensor, other: Tensor) -> Tensor:
    made: Tensor = torch.stack((diagonal, other, other, diagonal), -1).unflatten(-1, (2, 2))
    return made


def _product(factors: Sequence[Tensor], like: Tensor) -> Tensor:
    product = torch.ones_like(like[..., :1]).unsqueeze(-1)
    for factor in factors:
        product = (product[..., :, None, :, None] * factor[..., None, :, None, :]).flatten(-4, -3).flatten(-2, -1)
    return product


@functools.cache
def _permutations(n: int) -> Tensor:
    """Return all permutation matrices, `[n!, n^2]`, the identity first."""
    orders = torch.tensor(list(itertools.permutations(range(n))))
    return torch.nn.functional.one_hot(orders, n).flatten(1)


def register() -> None:
    """Make both known to `mhc_compile.Config`."""
    projections.PROJECTIONS |= {"permutations": Permutations(), "kronecker": Kronecker()}
