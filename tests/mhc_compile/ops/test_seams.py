"""The fused ops are the ops that they are made of, with a norm behind the read and a tail behind the branch."""

from __future__ import annotations

import itertools

import pytest
import torch

from mhc_compile.ops import limits
from tests.mhc_compile.equations import helpers
from tests.mhc_compile.equations.fused import Fused, only_given
from tests.mhc_compile.equations.helpers import TOKENS, check, near, normal, spread_out

KINDS = [("mhc", "sinkhorn"), ("mhc", "identity"), ("hc", "sinkhorn")]
NORMS = ["none", "rms", "rms weight", "rms_cast weight", "layer", "layer weight", "layer weight shift"]
OPS = ["enter", "seam", "leave"]
kinds = pytest.mark.parametrize(("connection", "projection"), KINDS, ids=str)
streams = pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
norms = pytest.mark.parametrize("norm", NORMS)
ops = pytest.mark.parametrize("op", OPS)
plains = pytest.mark.parametrize("plain", [False, True], ids=["streams", "plain"])
narrow = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def compare(case: Fused, op: str, strided: bool = False) -> None:
    by_op, given = only_given(case.by_op(op), case.tensors(op))
    by_equation, _ = only_given(case.by_equation(op), case.tensors(op))
    check(by_op, by_equation, [spread_out(t) for t in given] if strided else given)


# -- values and gradients ---------------------------------------------------------------------------------------------


@ops
@plains
@kinds
@streams
def test_values_and_every_gradient(op: str, n: int, connection: str, projection: str, plain: bool) -> None:
    compare(Fused(n, 5, (3, 2), connection, projection, plain=plain), op)


@norms
@plains
@pytest.mark.parametrize("op", ["enter", "seam"])
def test_every_norm(op: str, norm: str, plain: bool) -> None:
    compare(Fused(3, 7, (4,), norm=norm, plain=plain), op)


@ops
@plains
@pytest.mark.parametrize("tokens", TOKENS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_any_number_of_tokens(op: str, tokens: tuple[int, ...], dtype: torch.dtype, plain: bool) -> None:
    compare(Fused(4, 9, tokens, dtype=dtype, plain=plain), op)


@ops
@plains
def test_one_feature(op: str, plain: bool) -> None:
    compare(Fused(2, 1, (5,), norm="rms weight", plain=plain), op)


@ops
@plains
@kinds
def test_non_contiguous_inputs(op: str, connection: str, projection: str, plain: bool) -> None:
    case = Fused(3, 5, (4, 2), connection, projection, plain=plain)
    compare(case, op, strided=True)
    given = [t if t is None else spread_out(t) for t in case.tensors(op)]
    assert all(t.is_contiguous() for t in helpers.tensors(case.by_op(op)(*given)))


@pytest.mark.parametrize("op", ["seam", "leave"])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize(("scale", "multiplier"), [(False, 1.0), (False, 0.5), (True, 1.0), (True, -2.0)])
def test_every_tail(op: str, offset: bool, scale: bool, multiplier: float) -> None:
    compare(Fused(3, 5, (4,), offset_given=offset, scale_given=scale, multiplier=multiplier), op)


@pytest.mark.parametrize("used", [[0], [1], [2], [3], [0, 3]], ids=str)
def test_gradients_where_only_some_results_are_used(used: list[int]) -> None:
    case = Fused(3, 5, (4,))
    by_op, given = only_given(case.by_op("seam"), case.tensors("seam"))
    by_equation, _ = only_given(case.by_equation("seam"), case.tensors("seam"))
    check(lambda *t: [by_op(*t)[i] for i in used], lambda *t: [by_equation(*t)[i] for i in used], given)


def test_what_is_frozen_gets_no_gradient() -> None:
    case = Fused(3, 5, (4,))
    tensors = case.tensors("seam")
    assert tensors[1] is not None
    tensors[1].requires_grad_()
    torch.autograd.backward(case.by_op("seam")(*tensors)[1], normal(4, 5, seed=12))
    assert [t is not None and t.grad is not None for t in tensors] == [i == 1 for i in range(len(tensors))]


@norms
@kinds
def test_what_is_saved(norm: str, connection: str, projection: str) -> None:
    case = Fused(3, 5, (4, 2), connection, projection, norm=norm)
    x, *site = case.tensors("enter")
    assert x is not None
    u, _, _, pre, y, r, mean, rstd = torch.ops.mhc.enter(x, *site, *case.options)
    expected = torch.ops.mhc.coefficients(x, *site[:4], *case.arguments)
    assert all(torch.equal(a, b) for a, b in zip((pre, y, r), (expected[0], *expected[3:]), strict=True))
    read = helpers.read(x, pre, 3)
    layer, none = norm.startswith("layer"), torch.empty(0, dtype=torch.float64)
    near(mean, read.mean(-1, keepdim=True) if layer else none, 1e-12)
    spread = read.var(-1, keepdim=True, correction=0) if layer else read.square().mean(-1, keepdim=True)
    near(rstd, none if norm == "none" else (spread + 1e-3) ** -0.5, 1e-12)
    if norm == "none":
        near(u, read, 1e-12)


# -- dtypes -----------------------------------------------------------------------------------------------------------


@ops
@plains
@narrow
@pytest.mark.parametrize("norm", ["none", "rms weight", "rms_cast weight", "layer weight shift"])
def test_narrow_results_are_rounded_once(op: str, dtype: torch.dtype, norm: str, plain: bool) -> None:
    """Against the equations in fp64 with the same roundings between them: only ties may differ."""
    case = Fused(4, 33, (40,), dtype=dtype, norm=norm, plain=plain)
    by_op, given = only_given(case.by_op(op), case.tensors(op))
    by_equation, _ = only_given(case.by_equation(op), case.tensors(op))
    found = helpers.values_and_gradients(by_op, given, wide=False)
    exact = helpers.values_and_gradients(by_equation, given, wide=True)
    for actual, wanted in zip(itertools.chain(*found), itertools.chain(*exact), strict=True):
        if actual.dtype == dtype:
            assert (actual != wanted.to(dtype)).double().mean() <= (0.01 if actual.dim() > 1 else 0.1)
            near(actual, wanted, torch.finfo(dtype).eps)
        else:
            assert actual.dtype == torch.float32
            near(actual, wanted, torch.finfo(dtype).eps / 2 if op == "seam" else 1e-5)  # one tie of a stream shows
    assert [g.dtype for g in found[1]] == [t.dtype for t in given]


@pytest.mark.parametrize("op", ["seam", "leave"])
def test_a_branch_narrower_than_the_streams(op: str) -> None:
    """As under autocast."""
    case = Fused(3, 5, (4,), dtype=torch.float32, branch_dtype=torch.bfloat16)
    by_op, given = only_given(case.by_op(op), case.tensors(op))
    by_equation, _ = only_given(case.by_equation(op), case.tensors(op))
    (outputs, found), (values, exact) = (
        helpers.values_and_gradients(f, given, wide=wide) for f, wide in ((by_op, False), (by_equation, True))
    )
    assert all(output.dtype == torch.float32 for output in outputs)
    assert [g.dtype for g in found] == [t.dtype for t in given]
    for actual, wanted in zip((*outputs, *found), (*values, *exact), strict=True):
        near(actual, wanted, torch.finfo(actual.dtype).eps * 40)


@ops
@narrow
@pytest.mark.parametrize("wide", [True, False])
def test_autocast_changes_no_bit(op: str, dtype: torch.dtype, wide: bool) -> None:
    case = Fused(4, 7, (5, 2), dtype=torch.float32 if wide else dtype)
    by_op, given = only_given(case.by_op(op), case.tensors(op))
    outside = helpers.values_and_gradients(by_op, given, wide=False)
    with torch.autocast("cpu", dtype):
        inside = helpers.values_and_gradients(by_op, given, wide=False)
    for actual, wanted in zip(itertools.chain(*inside), itertools.chain(*outside), strict=True):
        assert actual.dtype == wanted.dtype
        assert torch.equal(actual, wanted)


@ops
def test_second_derivatives_are_refused_not_wrong(op: str) -> None:
    case = Fused(3, 5, (2,))
    by_op, given = only_given(case.by_op(op), case.tensors(op))
    x, *rest = given
    x.requires_grad_()
    total = helpers.tensors(by_op(x, *rest))[0].pow(3).sum()
    (first,) = torch.autograd.grad(total, x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"second derivatives .*mhc_compile\.plain"):
        torch.autograd.grad(first.pow(2).sum(), x)


# -- what kernels there are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["sinkhorn", "identity"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("n", [1, 4, 16])
def test_sites_with_kernels(n: int, projection: str, dtype: torch.dtype) -> None:
    assert limits.why_not(n, "mhc", projection, dtype) is None


@pytest.mark.parametrize(
    ("site", "named"),
    [
        ((17, "mhc", "sinkhorn", torch.float32), "17"),
        ((4, "hc", "sinkhorn", torch.float32), "'hc'"),
        ((4, "mhc", "birkhoff", torch.float32), "'birkhoff'"),
        ((4, "mhc", "sinkhorn", torch.float64), "torch.float64"),
    ],
    ids=str,
)
def test_sites_without_kernels_are_told_why(site: tuple[int, str, str, torch.dtype], named: str) -> None:
    assert named in str(limits.why_not(*site))
