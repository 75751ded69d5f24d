from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mhc_compile.errors import ConfigError
from mhc_compile.ops import projections, reference
from mhc_compile.ops.projections import Identity, Sinkhorn
from tests.equations import far, helpers
from tests.equations.helpers import TOKENS, near, normal, spread_out
from tests.pairwise import pairwise

STREAMS = [1, 2, 3, 4, 8]


def by_autograd(z: Tensor, grad: Tensor, n: int, iters: int) -> Tensor:
    leaf = z.detach().double().requires_grad_()
    (found,) = torch.autograd.grad(helpers.sinkhorn(leaf.unflatten(-1, (n, n)), iters), leaf, grad.double())
    return found


@pairwise(n=STREAMS, tokens=TOKENS, iters=[1, 3, 20])
def test_sinkhorn_and_its_vjp(n: int, tokens: tuple[int, ...], iters: int) -> None:
    z, grad = 2 * normal(*tokens, n * n), normal(*tokens, n, n, seed=1)
    expected = helpers.sinkhorn(z.unflatten(-1, (n, n)), iters)
    near(Sinkhorn().apply(z, n, iters), expected, 1e-13)
    near(Sinkhorn().run(z, n, iters), expected, 1e-13)
    found = Sinkhorn().vjp(z, grad, n, iters)
    assert found.shape == z.shape
    torch.testing.assert_close(found, by_autograd(z, grad, n, iters), rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 25), st.integers(0, 2**31), st.floats(0.1, 8))
def test_vjp_is_that_of_the_unrolled_iteration(n: int, iters: int, seed: int, scale: float) -> None:
    """Not that of the fixed point: also where the iteration is far from it."""
    z, grad = scale * normal(3, n * n, seed=seed), normal(3, n, n, seed=seed + 1)
    expected = by_autograd(z, grad, n, iters)
    torch.testing.assert_close(Sinkhorn().vjp(z, grad, n, iters), expected, rtol=0, atol=1e-12)


def test_run_and_vjp_in_fp32() -> None:
    z, grad = 3 * normal(50, 16), normal(50, 4, 4, seed=1)
    near(Sinkhorn().run(z.float(), 4, 20), helpers.sinkhorn(z.float().double().unflatten(-1, (4, 4)), 20), 1e-6)
    near(Sinkhorn().vjp(z.float(), grad.float(), 4, 20), by_autograd(z.float(), grad.float(), 4, 20), 1e-5)


def test_run_and_vjp_of_non_contiguous_inputs() -> None:
    z, grad = spread_out(normal(5, 2, 9)), spread_out(normal(5, 2, 3, 3, seed=1))
    near(Sinkhorn().run(z, 3, 4), helpers.sinkhorn(z.unflatten(-1, (3, 3)), 4), 1e-13)
    torch.testing.assert_close(Sinkhorn().vjp(z, grad, 3, 4), by_autograd(z, grad, 3, 4), rtol=0, atol=1e-12)


def test_run_and_vjp_leave_their_inputs_alone() -> None:
    z, grad = normal(5, 9), normal(5, 3, 3, seed=1)
    before = z.clone(), grad.clone()
    Sinkhorn().vjp(z, grad, 3, 4)
    Sinkhorn().run(z, 3, 4)
    assert torch.equal(z, before[0])
    assert torch.equal(grad, before[1])


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return Sinkhorn().apply(z, 3, 5)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return Sinkhorn().vjp(z, grads[0], 3, 5)


def test_vjp_passes_gradcheck() -> None:
    assert torch.autograd.gradcheck(_Sinkhorn.apply, normal(2, 9).requires_grad_())


@pairwise(n=STREAMS, exponent=[2, 5, 11])
def test_sinkhorn_starts_at_the_matrix_it_was_asked_for(n: int, exponent: int) -> None:
    q = 2.0**-exponent / n
    z = Sinkhorn().start(n, q)
    assert z.dtype == torch.float64
    assert z.shape == (Sinkhorn().width(n),)
    wanted = (1 - n * q) * torch.eye(n).double() + q
    torch.testing.assert_close(Sinkhorn().apply(z, n, 1), wanted, rtol=0, atol=1e-15)
    torch.testing.assert_close(Sinkhorn().apply(z, n, 20), wanted, rtol=0, atol=1e-14)


@pairwise(n=STREAMS, tokens=TOKENS, dtype=[torch.float64, torch.float32])
def test_identity_is_the_identity_for_every_token(n: int, tokens: tuple[int, ...], dtype: torch.dtype) -> None:
    kind = Identity()
    assert kind.width(n) == 0
    assert kind.start(n, 0.1).shape == (0,)
    z = torch.zeros(*tokens, 0, dtype=dtype)
    m = kind.apply(z, n, 20)
    assert m.dtype == dtype
    assert torch.equal(m, torch.eye(n, dtype=dtype).expand(*tokens, n, n))
    assert kind.vjp(z, normal(*tokens, n, n, dtype=dtype), n, 20).shape == z.shape


def test_start_of_identity_and_sinkhorn_agree_on_what_apply_needs() -> None:
    for kind in projections.PROJECTIONS.values():
        for n in STREAMS:
            start = kind.start(n, 2.0**-6)
            assert start.dtype == torch.float64
            assert start.shape == (kind.width(n),)
            assert kind.apply(start, n, 20).shape == (n, n)


def test_get_names_what_exists() -> None:
    assert isinstance(projections.get("sinkhorn"), Sinkhorn)
    with pytest.raises(ConfigError, match=r"one of 'sinkhorn', 'identity', not 'sinkhron'"):
        projections.get("sinkhron")


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(far.KINDS),
    st.sampled_from([2, 3, 4, 5, 8, 16]),
    st.sampled_from([1, 2, 20, 60]),
    st.one_of(st.floats(80, 130), st.floats(0, 1000)),
    st.integers(0, 2**31),
)
def test_sinkhorn_of_far_logits_in_fp32(kind: str, n: int, iters: int, span: float, seed: int) -> None:
    z, grad = far.logits(kind, n, span, seed), normal(4, n, n, seed=seed + 2).float()
    rows = z.flatten(-2)
    far.check(Sinkhorn().run(rows, n, iters), Sinkhorn().vjp(rows, grad, n, iters).view_as(z), z, grad, iters)
    leaf = z.clone().requires_grad_()
    made = Sinkhorn().apply(leaf.flatten(-2), n, iters)
    far.check(made.detach(), torch.autograd.grad(made, leaf, grad)[0], z, grad, iters)


@pytest.mark.parametrize("n", [3, 4, 8, 11])
def test_what_underflows_lasts(n: int) -> None:
    """In "cross" an entry grows by (n-1)^2 an iteration: from where it underflows it stays negligible."""
    lasts = reference.lasting(n)
    assert lasts >= 20
    for below in (0, 0.1):
        z = torch.zeros(n, n).double()
        z[1:, 1:] = -103.5 - below
        assert 0 < far.sinkhorn(z, lasts)[-1, -1] < 2e-6


def test_what_is_not_finite_shows() -> None:
    z = normal(4, 9).float()
    for bad in (float("nan"), float("inf")):
        z[1, 4] = bad
        made = Sinkhorn().run(z, 3, 20)
        assert made[1].isnan().all()
        assert made[[0, 2, 3]].isfinite().all()
        assert Sinkhorn().apply(z, 3, 20)[1].isnan().all()
