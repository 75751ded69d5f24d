from __future__ import annotations

import itertools

import pytest
import torch

from mhc_compile.errors import ConfigError
from mhc_compile.ops import connections, reference
from mhc_compile.ops.registration import call
from mhc_compile.ops.signatures import Expand, Readout
from tests.equations import helpers
from tests.equations.helpers import (
    KINDS,
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
from tests.pairwise import pairwise

NARROW = [torch.bfloat16, torch.float16]
STREAMS = [1, 2, 3, 4, 8]
kinds = pytest.mark.parametrize("kind", KINDS, ids="-".join)
Kind = tuple[str, str]  # connection and projection


@pairwise(kind=KINDS, n=STREAMS)
def test_coefficients_and_every_gradient(kind: Kind, n: int) -> None:
    for tokens in TOKENS:
        case = Case(n, 5, tokens, *kind)
        check(coefficients(case), case.reference, [case.streams(), *case.parameters()])


@pairwise(kind=KINDS, size=[(1, 1), (2, 1), (3, 7), (4, 5), (8, 7)], dtype=[torch.float64, torch.float32])
def test_a_whole_site_and_every_gradient(kind: Kind, size: tuple[int, int], dtype: torch.dtype) -> None:
    n, c = size
    case = Case(n, c, (4, 2), *kind, dtype)
    check(whole(case), whole_by_equation(case), inputs(case))


@kinds
def test_non_contiguous_inputs(kind: Kind) -> None:
    case = Case(3, 5, (4, 2), *kind)
    check(whole(case), whole_by_equation(case), [spread_out(t) for t in inputs(case)])


@pairwise(
    lambda row: (row["kind"], row["used"]) != (("mhc", "identity"), (2,)),  # a constant
    kind=KINDS,
    used=[(0,), (1,), (2,), (0, 2)],
)
def test_gradients_where_only_some_coefficients_are_used(kind: Kind, used: tuple[int, ...]) -> None:
    case = Case(3, 5, (4,), *kind)

    def pick(function: Function) -> Function:
        return lambda *tensors: [function(*tensors)[i] for i in used]

    tensors = [case.streams(), *case.parameters()]
    check(pick(coefficients(case)), pick(case.reference), tensors)


def test_parameters_that_are_frozen_get_no_gradient() -> None:
    case = Case(3, 5, (4,))
    x, *parameters = case.streams().requires_grad_(), *case.parameters()
    _, _, res = coefficients(case)(x, *parameters)
    res.pow(3).sum().backward()
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


@pairwise(kind=KINDS, dtype=NARROW)
def test_coefficients_of_narrow_streams_are_fp32(kind: Kind, dtype: torch.dtype) -> None:
    case = Case(4, 7, (5, 2), *kind, dtype)
    x, parameters = case.streams(), case.parameters()
    outputs = coefficients(case)(x, *parameters)
    expected = case.reference(x.double(), *(p.double() for p in parameters))
    for actual, wanted in zip(outputs, expected, strict=True):
        assert actual.dtype == torch.float32
        near(actual, wanted, 2e-6)


@pairwise(kind=KINDS, dtype=NARROW)
def test_gradients_of_narrow_streams(kind: Kind, dtype: torch.dtype) -> None:
    """The coefficients have fp32 gradients, so the error is that of one rounding of dx."""
    case = Case(4, 7, (5, 2), *kind, dtype)
    _, (dx, *rest) = helpers.values_and_gradients(coefficients(case), [case.streams(), *case.parameters()], wide=False)
    _, expected = helpers.values_and_gradients(case.reference, [case.streams(), *case.parameters()], wide=True)
    assert dx.dtype == dtype
    near(dx, expected[0], torch.finfo(dtype).eps)
    for actual, wanted in zip(rest, expected[1:], strict=True):
        assert actual.dtype == torch.float32
        near(actual, wanted, 1e-5)


@pairwise(dtype=NARROW)
def test_a_whole_site_with_narrow_streams(dtype: torch.dtype) -> None:
    case = Case(4, 7, (5, 2), dtype=dtype)
    outputs, _ = check(whole(case), whole_by_equation(case), inputs(case), 8 * torch.finfo(dtype).eps)
    assert {o.dtype for o in outputs} == {dtype}


@pairwise(kind=KINDS, dtype=NARROW, wide=[True, False])
def test_autocast_changes_no_bit(kind: Kind, dtype: torch.dtype, wide: bool) -> None:
    case = Case(4, 7, (5, 2), *kind, torch.float32 if wide else dtype)
    outside = helpers.values_and_gradients(whole(case), inputs(case), wide=False)
    with torch.autocast("cpu", dtype):
        inside = helpers.values_and_gradients(whole(case), inputs(case), wide=False)
    for actual, wanted in zip(itertools.chain(*inside), itertools.chain(*outside), strict=True):
        assert actual.dtype == wanted.dtype
        assert torch.equal(actual, wanted)


@pairwise(n=STREAMS, dtype=NARROW)
def test_readout_of_narrow_copies_is_the_copy(n: int, dtype: torch.dtype) -> None:
    x = normal(50, 7, dtype=dtype)
    assert torch.equal(call("readout", Readout(call("expand", Expand(x, n)), n)), x)


@kinds
def test_second_derivatives_are_refused_not_wrong(kind: Kind) -> None:
    case = Case(3, 5, (2,), *kind)
    x = case.streams().requires_grad_()
    total = coefficients(case)(x, *case.parameters())[0].pow(3).sum()
    (first,) = torch.autograd.grad(total, x, create_graph=True)  # some trainers ask for it without need
    near(first, torch.autograd.grad(case.reference(x, *case.parameters())[0].pow(3).sum(), x)[0], 1e-12)
    with pytest.raises(NotImplementedError, match=r"second derivatives .*mhc_compile\.plain"):
        torch.autograd.grad(first.pow(2).sum(), x)


def test_unknown_connection_is_named() -> None:
    given = Case(2, 5).coefficients()
    with pytest.raises(ConfigError, match="connection must be one of"):
        call("coefficients", given._replace(maps=given.maps._replace(connection="mch")))


@kinds
@pytest.mark.parametrize("size", [1e20, 3e37])
def test_streams_whose_square_overflows_count_as_an_rmsnorm_counts_them(kind: Kind, size: float) -> None:
    """Theirs are the coefficients of no dynamic part."""
    case = Case(3, 5, (4,), *kind, dtype=torch.float32)
    x, parameters = case.streams(), case.parameters()
    outputs, found = helpers.values_and_gradients(coefficients(case), [x * size, *parameters], wide=False)
    plain, wanted = helpers.values_and_gradients(case.reference, [torch.zeros_like(x), *parameters], wide=False)
    for actual, expected in zip((*outputs, *found[1:]), (*plain, *wanted[1:]), strict=True):
        near(actual, expected, 1e-5)
    assert not found[0].any()
    rows = connections.get(case.connection).rows(x * size)
    assert not reference.logits(rows, parameters[0], helpers.EPS)[0].any()
