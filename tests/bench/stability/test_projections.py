"""bench/stability/projections: doubly stochastic without an iteration, and exact where they start."""

from __future__ import annotations

import pytest
import torch

from bench.stability.projections import Kronecker, Permutations

KINDS = pytest.mark.parametrize("kind", [Permutations(), Kronecker()], ids=["permutations", "kronecker"])


@KINDS
@pytest.mark.parametrize("n", [2, 4])
def test_doubly_stochastic(kind: Permutations | Kronecker, n: int) -> None:
    logits = 3 * torch.randn(5, kind.width(n), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h = kind.apply(logits, n, 0)
    assert h.shape == (5, n, n)
    assert (h >= 0).all()
    for dim in (-1, -2):
        torch.testing.assert_close(h.sum(dim), torch.ones(5, n, dtype=torch.float64))
    assert not torch.allclose(h[0], h[1])


@KINDS
def test_the_start_is_near_the_identity(kind: Permutations | Kronecker) -> None:
    n, q = 4, 1 / 64
    h = kind.apply(kind.start(n, q), n, 0)
    torch.testing.assert_close(h.diagonal(), torch.full((n,), 1 - (n - 1) * q, dtype=torch.float64))
    if isinstance(kind, Permutations):
        torch.testing.assert_close(h, (1 - n * q) * torch.eye(n, dtype=torch.float64) + q)


def test_a_kronecker_product() -> None:
    """Of two factors, as torch.kron has it."""
    a, b = torch.tensor([0.3, 0.8], dtype=torch.float64)
    factors = [torch.stack((torch.stack((p, 1 - p)), torch.stack((1 - p, p)))) for p in (a, b)]
    logits = torch.stack((a, b)).logit()
    torch.testing.assert_close(Kronecker().apply(logits, 4, 0), torch.kron(*factors))


@KINDS
def test_the_gradient(kind: Permutations | Kronecker) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, kind.width(4), dtype=torch.float64, generator=generator)
    grad = torch.randn(3, 4, 4, dtype=torch.float64, generator=generator)
    tangent = torch.randn(logits.shape, dtype=torch.float64, generator=generator)
    along = torch.func.jvp(lambda z: kind.apply(z, 4, 0), (logits,), (tangent,))[1]
    torch.testing.assert_close((kind.vjp(logits, grad, 4, 0) * tangent).sum(), (grad * along).sum())


def test_streams_that_do_not_factor() -> None:
    with pytest.raises(ValueError, match=r"needs 2\^k streams, not 6"):
        Kronecker().width(6)
