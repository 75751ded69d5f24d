from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from mhc_compile.ops import reference
from tests.equations import helpers
from tests.equations.helpers import TOKENS, Case, Tensors, at, check, normal, spread_out
from tests.pairwise import pairwise

SIZES = [(1, 5), (2, 1), (3, 7), (4, 5), (8, 7)]


def weights(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Any read, write and mixing weights: none of these functions may rely on their constraints."""
    n, tokens, wide = case.n, case.tokens, case.wide
    return (
        normal(*tokens, n, seed=7, dtype=wide),
        normal(*tokens, n, seed=8, dtype=wide),
        normal(*tokens, n, n, seed=9, dtype=wide),
    )


Pair = tuple[Callable[..., Tensor], Callable[..., Tensor], Tensors]


def pairs(x: Tensor, f: Tensor, h_pre: Tensor, h_post: Tensor, h_res: Tensor) -> list[Pair]:
    """Function, equation and what they take."""
    return [
        (reference.read, helpers.read, (x, h_pre)),
        (reference.write, helpers.write, (x, f, h_post, h_res)),
        (reference.readout, helpers.readout, (x,)),
    ]


@pairwise(size=SIZES, tokens=TOKENS, dtype=[torch.float64, torch.float32])
def test_values_and_every_gradient(size: tuple[int, int], tokens: tuple[int, ...], dtype: torch.dtype) -> None:
    n, c = size
    case = Case(n, c, tokens, dtype=dtype)
    x, f = case.streams(), case.branch()
    h_pre, h_post, h_res = weights(case)
    acc = case.wide
    check(at(reference.expand, n), at(helpers.expand, n), [f])
    check(at(reference.read, n), at(helpers.read, n), [x, h_pre])
    check(at(reference.write, n), at(helpers.write, n), [x, f, h_post, h_res])
    check(at(reference.readout, n, acc), at(helpers.readout, n), [x])
    check(at(reference.sinkhorn, 20), at(helpers.sinkhorn, 20), [h_res])


@pytest.mark.parametrize(("n", "c"), SIZES)
def test_logits(n: int, c: int) -> None:
    def by_equation(x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.sqrt(torch.einsum("...k,...k->...", x, x) / x.shape[-1] + 1e-3)[..., None]
        return torch.einsum("...k,km->...m", x / norm, phi), 1 / norm

    phi = normal(n * c, n + 2, seed=1)
    for tokens in TOKENS:
        check(at(reference.logits, 1e-3), by_equation, [normal(*tokens, n * c), phi])


def test_logits_take_the_dtype_of_phi() -> None:
    y, r = reference.logits(normal(3, 5, dtype=torch.bfloat16), normal(5, 2, dtype=torch.float32), 1e-6)
    assert y.dtype == r.dtype == torch.float32


def test_non_contiguous_inputs() -> None:
    case = Case(3, 5, (4, 2))
    inputs = [spread_out(t) for t in (case.streams(), case.branch(), *weights(case))]
    assert not any(t.is_contiguous() for t in inputs)
    x, f, h_pre, h_post, h_res = inputs
    check(at(reference.write, 3), at(helpers.write, 3), [x, f, h_post, h_res])
    check(at(reference.read, 3), at(helpers.read, 3), [x, h_pre])
    check(at(reference.readout, 3, torch.float64), at(helpers.readout, 3), [x])
    check(at(reference.sinkhorn, 3), at(helpers.sinkhorn, 3), [h_res])


@pairwise(dtype=[torch.bfloat16, torch.float16])
def test_narrow_streams_give_narrow_results_and_gradients(dtype: torch.dtype) -> None:
    case = Case(4, 7, (5, 3), dtype=dtype)
    x, f = case.streams(), case.branch()
    h_pre, h_post, h_res = weights(case)
    for function, by_equation, inputs in pairs(x, f, h_pre, h_post, h_res):
        outputs, _ = check(at(function, 4), at(by_equation, 4), inputs)
        assert outputs[0].dtype == dtype


def test_functions_run_on_fx_proxies() -> None:
    def whole(x: Tensor, f: Tensor, h_pre: Tensor, h_post: Tensor, h_res: Tensor, phi: Tensor) -> Tensor:
        u = reference.read(x, h_pre, 2) + reference.logits(f, phi, 1e-6)[0]
        h_res = reference.sinkhorn(h_res, 3)
        return reference.readout(reference.write(x, u, h_post, h_res, 2) + reference.expand(f, 2), 2)

    case = Case(2, 5)
    inputs = (case.streams(), case.branch(), *weights(case), normal(5, 5))
    assert torch.equal(fx.symbolic_trace(whole)(*inputs), whole(*inputs))


# -- Sinkhorn ---------------------------------------------------------------------------------------------------------

examples = settings(max_examples=60, deadline=None)


@st.composite
def logits(draw: st.DrawFn, bound: float = 8.0, smallest: int = 1) -> Tensor:
    """A square matrix of logits, fp64, entries within the bound."""
    n = draw(st.integers(smallest, 6))
    entry = st.floats(-bound, bound, allow_subnormal=False)
    rows = st.lists(st.lists(entry, min_size=n, max_size=n), min_size=n, max_size=n)
    return torch.tensor(draw(rows), dtype=torch.float64).view(n, n)


def contraction(z: Tensor) -> float:
    """Birkhoff's bound on how much one half step shrinks the distance of the sums from 1 (Hilbert's metric)."""
    cross = z[:, :, None, None] + z[None, None] - z[:, None, None, :] - z.t()[None, :, :, None]
    return math.tanh(float(cross.max()) / 4)


@examples
@given(logits(bound=30.0), st.integers(1, 25))
def test_sinkhorn_is_a_stochastic_matrix(z: Tensor, iters: int) -> None:
    m = reference.sinkhorn(z.float(), iters)
    assert m.isfinite().all()
    assert (m >= 0).all()
    assert (m.double().sum(-1) - 1).abs().max() <= 1e-6


@examples
@given(logits(bound=3.0), st.integers(1, 25))
def test_sinkhorn_columns_sum_to_one_within_birkhoffs_bound(z: Tensor, iters: int) -> None:
    first = torch.softmax(z, 0).sum(1)  # the sums of rows after the first half step
    distance = float(first.max().log() - first.min().log())
    bound = math.expm1(distance * contraction(z) ** (2 * iters - 1))
    assert (reference.sinkhorn(z, iters).sum(0) - 1).abs().max() <= bound + 1e-13


@examples
@given(logits(bound=1.0))
def test_sinkhorn_columns_at_the_default_iterations(z: Tensor) -> None:
    assert (reference.sinkhorn(z.float(), 20).sum(0) - 1).abs().max() <= 1e-4


@examples
@given(logits(), st.integers(1, 20), st.data())
def test_sinkhorn_commutes_with_permutations(z: Tensor, iters: int, data: st.DataObject) -> None:
    rows, columns = (data.draw(st.permutations(range(len(z)))) for _ in range(2))
    moved = reference.sinkhorn(z[rows][:, columns], iters)
    torch.testing.assert_close(moved, reference.sinkhorn(z, iters)[rows][:, columns], rtol=1e-12, atol=1e-14)


@examples
@given(logits(), st.integers(1, 20), st.floats(-8, 8))
def test_sinkhorn_ignores_a_constant_on_a_column(z: Tensor, iters: int, shift: float) -> None:
    """At any number of iterations, since the first half step divides by the columns."""
    other = z.clone()
    other[:, 0] += shift
    torch.testing.assert_close(reference.sinkhorn(other, iters), reference.sinkhorn(z, iters), rtol=1e-11, atol=1e-14)


@examples
@given(logits(bound=1.0, smallest=2), st.floats(-8, 8))
def test_sinkhorn_ignores_a_constant_on_a_row_in_the_limit(z: Tensor, shift: float) -> None:
    other = z.clone()
    other[0] += shift
    torch.testing.assert_close(reference.sinkhorn(other, 100), reference.sinkhorn(z, 100), rtol=1e-10, atol=1e-12)


@examples
@given(st.floats(-100, 100), st.integers(1, 20))
def test_sinkhorn_of_one_stream_is_one(z: float, iters: int) -> None:
    assert reference.sinkhorn(torch.tensor([[z]]), iters).item() == 1


def test_sinkhorn_normalises_columns_first_then_rows() -> None:
    m = reference.sinkhorn(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).log().double(), 1)
    columns = torch.tensor([[1 / 4, 2 / 6], [3 / 4, 4 / 6]], dtype=torch.float64)
    torch.testing.assert_close(m, columns / columns.sum(1, keepdim=True))


# -- one rounding -----------------------------------------------------------------------------------------------------


@pairwise(n=[2, 3, 4, 8], dtype=[torch.bfloat16, torch.float16])
def test_results_are_rounded_once(n: int, dtype: torch.dtype) -> None:
    case = Case(n, 96, (64,), dtype=dtype)
    x, f = case.streams(), case.branch()
    h_pre, h_post, h_res = weights(case)
    for function, by_equation, inputs in pairs(x, f, h_pre, h_post, h_res):
        wide = [t.double() for t in inputs]
        once(function(*inputs, n), by_equation(*wide, n), by_equation(*(t.abs() for t in wide), n), n)


def once(actual: Tensor, exact: Tensor, magnitude: Tensor, n: int) -> None:
    """Assert that all but one entry in a thousand are the exact value rounded, and the others a tie of the fp32 sum."""
    expected = exact.to(actual.dtype)
    assert (actual != expected).double().mean() <= 1e-3
    bits = {torch.bfloat16: 7, torch.float16: 10}[actual.dtype]
    exponent = torch.frexp(exact.abs().clamp(min=torch.finfo(actual.dtype).tiny))[1]
    half = torch.ldexp(torch.ones_like(exact), exponent - 2 - bits)
    error = (actual.double() - exact).abs()
    assert (error <= half + (n + 1) * 2.0**-24 * magnitude).all()
    assert (error <= 4 * half)[exact.abs() > 2.0**-9 * magnitude].all()  # 2 ulp, where little cancels
