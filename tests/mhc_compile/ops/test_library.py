from __future__ import annotations

import itertools

import pytest
import torch

from mhc_compile.errors import ConfigError
from tests.mhc_compile.equations import helpers
from tests.mhc_compile.equations.helpers import (
    TOKENS,
    Case,
    Function,
    check,
    coefficients,
    inputs,
    near,
    normal,
    spread_out,
    whole,
    whole_by_equation,
)

KINDS = [("mhc", "sinkhorn"), ("mhc", "identity"), ("hc", "sinkhorn")]
kinds = pytest.mark.parametrize(("connection", "projection"), KINDS, ids=str)
streams = pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
narrow = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@kinds
@streams
@pytest.mark.parametrize("tokens", TOKENS, ids=str)
def test_coefficients_and_every_gradient(connection: str, projection: str, n: int, tokens: tuple[int, ...]) -> None:
    case = Case(n, 5, tokens, connection, projection)
    check(coefficients(case), case.reference, [case.streams(), *case.parameters()])


@kinds
@pytest.mark.parametrize(("n", "c"), [(1, 1), (2, 1), (3, 7), (4, 5), (8, 7)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_whole_site_and_every_gradient(connection: str, projection: str, n: int, c: int, dtype: torch.dtype) -> None:
    case = Case(n, c, (4, 2), connection, projection, dtype)
    check(whole(case), whole_by_equation(case), inputs(case))


@kinds
def test_non_contiguous_inputs(connection: str, projection: str) -> None:
    case = Case(3, 5, (4, 2), connection, projection)
    check(whole(case), whole_by_equation(case), [spread_out(t) for t in inputs(case)])


@pytest.mark.parametrize("used", [[0], [1], [2], [0, 2]], ids=str)
@kinds
def test_gradients_where_only_some_coefficients_are_used(connection: str, projection: str, used: list[int]) -> None:
    case = Case(3, 5, (4,), connection, projection)

    def pick(function: Function) -> Function:
        return lambda *tensors: [function(*tensors)[i] for i in used]

    tensors = [case.streams(), *case.parameters()]
    if (projection, used) == ("identity", [2]):
        pytest.skip("a constant")
    check(pick(coefficients(case)), pick(case.reference), tensors)


def test_parameters_that_are_frozen_get_no_gradient() -> None:
    case = Case(3, 5, (4,))
    x, *parameters = case.streams().requires_grad_(), *case.parameters()
    coefficients(case)(x, *parameters)[2].pow(3).sum().backward()
    assert x.grad is not None
    assert [p.grad for p in parameters] == [None] * 4


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1e4, 1e18])
def test_streams_of_any_scale(scale: float) -> None:
    """bf16 reaches 1e38, whose square is not a number of fp32: up to 1e18 it must be."""
    case = Case(4, 5, (6,), dtype=torch.bfloat16)
    x = case.streams() * scale
    outputs = coefficients(case)(x, *case.parameters())
    expected = case.reference(x.double(), *(p.double() for p in case.parameters()))
    for actual, wanted in zip(outputs, expected, strict=True):
        near(actual, wanted, 1e-5)


# -- dtypes -----------------------------------------------------------------------------------------------------------


@kinds
@narrow
def test_coefficients_of_narrow_streams_are_fp32(connection: str, projection: str, dtype: torch.dtype) -> None:
    case = Case(4, 7, (5, 2), connection, projection, dtype)
    x, parameters = case.streams(), case.parameters()
    outputs = coefficients(case)(x, *parameters)
    expected = case.reference(x.double(), *(p.double() for p in parameters))
    for actual, wanted in zip(outputs, expected, strict=True):
        assert actual.dtype == torch.float32
        near(actual, wanted, 2e-6)


@kinds
@narrow
def test_gradients_of_narrow_streams(connection: str, projection: str, dtype: torch.dtype) -> None:
    """The coefficients have fp32 gradients, so the error is that of one rounding of dx."""
    case = Case(4, 7, (5, 2), connection, projection, dtype)
    _, (dx, *rest) = helpers.values_and_gradients(coefficients(case), [case.streams(), *case.parameters()], wide=False)
    _, expected = helpers.values_and_gradients(case.reference, [case.streams(), *case.parameters()], wide=True)
    assert dx.dtype == dtype
    near(dx, expected[0], torch.finfo(dtype).eps)
    for actual, wanted in zip(rest, expected[1:], strict=True):
        assert actual.dtype == torch.float32
        near(actual, wanted, 1e-5)


@narrow
def test_a_whole_site_with_narrow_streams(dtype: torch.dtype) -> None:
    case = Case(4, 7, (5, 2), dtype=dtype)
    outputs, _ = check(whole(case), whole_by_equation(case), inputs(case), 8 * torch.finfo(dtype).eps)
    assert {o.dtype for o in outputs} == {dtype}


@kinds
@narrow
@pytest.mark.parametrize("wide", [True, False])
def test_autocast_changes_no_bit(connection: str, projection: str, dtype: torch.dtype, wide: bool) -> None:
    case = Case(4, 7, (5, 2), connection, projection, torch.float32 if wide else dtype)
    outside = helpers.values_and_gradients(whole(case), inputs(case), wide=False)
    with torch.autocast("cpu", dtype):
        inside = helpers.values_and_gradients(whole(case), inputs(case), wide=False)
    for actual, wanted in zip(itertools.chain(*inside), itertools.chain(*outside), strict=True):
        assert actual.dtype == wanted.dtype
        assert torch.equal(actual, wanted)


@streams
@narrow
def test_readout_of_narrow_copies_is_the_copy(n: int, dtype: torch.dtype) -> None:
    x = normal(50, 7, dtype=dtype)
    assert torch.equal(torch.ops.mhc.readout(torch.ops.mhc.expand(x, n), n), x)


@kinds
def test_second_derivatives_are_refused_not_wrong(connection: str, projection: str) -> None:
    case = Case(3, 5, (2,), connection, projection)
    x = case.streams().requires_grad_()
    total = coefficients(case)(x, *case.parameters())[0].pow(3).sum()
    (first,) = torch.autograd.grad(total, x, create_graph=True)  # some trainers ask for it without need
    near(first, torch.autograd.grad(case.reference(x, *case.parameters())[0].pow(3).sum(), x)[0], 1e-12)
    with pytest.raises(NotImplementedError, match=r"second derivatives .*mhc_compile\.plain"):
        torch.autograd.grad(first.pow(2).sum(), x)


def test_unknown_connection_is_named() -> None:
    case = Case(2, 5)
    with pytest.raises(ConfigError, match="connection must be one of"):
        torch.ops.mhc.coefficients(case.streams(), *case.parameters(), 2, "mch", "sinkhorn", 20, 1e-6)
