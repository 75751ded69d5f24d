"""The fused ops are the ops that they are made of, with a norm behind the read and a tail behind the branch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from mhc_compile.ops import limits
from mhc_compile.ops.registration import call
from mhc_compile.ops.signatures import Coefficients, CoefficientsResult, EnterResult
from tests.equations import helpers
from tests.equations.fused import FUSED, Fused, exists, only_given
from tests.equations.helpers import KINDS, TOKENS, check, near, normal, spread_out
from tests.pairwise import pairwise, sampled

NORMS = ["none", "rms", "rms weight", "rms_cast weight", "layer", "layer weight", "layer weight shift"]
NARROW = [torch.bfloat16, torch.float16]
ops = pytest.mark.parametrize("op", FUSED)
SPACE: dict[str, Any] = {
    "op": FUSED,
    "n": [1, 2, 3, 4, 8],
    "c": [1, 5, 7, 9],
    "tokens": TOKENS,
    "kind": KINDS,
    "dtype": [torch.float64, torch.float32],
    "norm": NORMS,
    "equal": [False, True],
    "offset": [False, True],
    "scale": [False, True],
    "multiplier": [1.0, 0.5, -2.0],
    "strided": [False, True],
}


def compare(case: Fused, op: str, strided: bool = False) -> None:
    by_op, given = only_given(case.by_op(op), case.tensors(op))
    by_equation, _ = only_given(case.by_equation(op), case.tensors(op))
    # behind equal streams a norm takes back what H_pre does to them, and of one feature a gradient is one number:
    # small differences
    cancels = (op == "enter" and case.equal_streams and case.norm != "none") or case.c == 1
    cancels = cancels and case.dtype == torch.float32
    given = [spread_out(t) for t in given] if strided else given
    outputs, _ = check(by_op, by_equation, given, 5e-5 if cancels else None)
    assert all(t.is_contiguous() for t in outputs)


# -- values and gradients ---------------------------------------------------------------------------------------------


def made(op: str, strided: bool, equal: bool, offset: bool, scale: bool, **more: Any) -> tuple[Fused, str, bool]:
    """The case of a combination, its op, and whether tensors lie on odd strides."""
    connection, projection = more.pop("kind")
    given: dict[str, Any] = {"equal_streams": equal, "offset_given": offset, "scale_given": scale}
    return Fused(**more, **given, connection=connection, projection=projection), op, strided


def sound(row: Mapping[str, Any]) -> bool:
    """Of one feature a norm takes back all that comes before it, so that its gradients are rounding errors."""
    return exists(row) and (row["c"] != 1 or row["norm"] == "none")


@pairwise(sound, into="row", **SPACE)
def test_values_and_every_gradient(row: dict[str, Any]) -> None:
    compare(*made(**row))


@ops
@pytest.mark.parametrize("equal", [False, True], ids=["streams", "equal"])
def test_a_norm_of_one_feature(op: str, equal: bool) -> None:
    compare(Fused(2, 1, (5,), norm="rms weight", equal_streams=equal), op)


@pytest.mark.slow
@sampled(400, sound, into="row", **{**SPACE, "c": [5, 7, 9]})
def test_any_combination(row: dict[str, Any]) -> None:
    compare(*made(**row))


@pytest.mark.parametrize("used", [[0], [1], [2], [3], [0, 3]], ids=str)
def test_gradients_where_only_some_results_are_used(used: list[int]) -> None:
    case = Fused(3, 5, (4,))
    by_op, given = only_given(case.by_op("seam"), case.tensors("seam"))
    by_equation, _ = only_given(case.by_equation("seam"), case.tensors("seam"))
    check(lambda *t: [by_op(*t)[i] for i in used], lambda *t: [by_equation(*t)[i] for i in used], given)


def test_what_is_frozen_gets_no_gradient() -> None:
    case = Fused(3, 5, (4,))
    x, f, *others = case.tensors("seam")
    assert f is not None
    _, u, *_ = case.by_op("seam")(x, f.requires_grad_(), *others)
    torch.autograd.backward(u, normal(4, 5, seed=12))
    assert f.grad is not None
    assert [t.grad for t in (x, *others) if t is not None] == [None] * (len(others) + 1)


@pairwise(norm=NORMS, kind=KINDS)
def test_what_is_saved(norm: str, kind: tuple[str, str]) -> None:
    case = Fused(3, 5, (4, 2), *kind, norm=norm)
    given = case.signature("enter")
    found: EnterResult = call("enter", given)
    expected: CoefficientsResult = call(
        "coefficients", Coefficients(given.x, given.site.parameters, given.options.maps)
    )
    kept = found.kept
    assert torch.equal(kept.h_pre, expected.h_pre)
    assert torch.equal(kept.y, expected.y)
    assert torch.equal(kept.r, expected.r)
    read = helpers.read(given.x, kept.h_pre, 3)
    layer, none = norm.startswith("layer"), torch.empty(0, dtype=torch.float64)
    near(kept.mean, read.mean(-1, keepdim=True) if layer else none, 1e-12)
    spread = read.var(-1, keepdim=True, correction=0) if layer else read.square().mean(-1, keepdim=True)
    near(kept.rstd, none if norm == "none" else (spread + 1e-3) ** -0.5, 1e-12)
    if norm == "none":
        near(found.u, read, 1e-12)


# -- dtypes -----------------------------------------------------------------------------------------------------------


@pairwise(
    op=FUSED, dtype=NARROW, norm=["none", "rms weight", "rms_cast weight", "layer weight shift"], equal=[False, True]
)
def test_narrow_results_are_rounded_once(op: str, dtype: torch.dtype, norm: str, equal: bool) -> None:
    """Against the equations in fp64 with the same roundings between them: only ties may differ."""
    case = Fused(4, 33, (40,), dtype=dtype, norm=norm, equal_streams=equal)
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


@pairwise(op=FUSED, dtype=NARROW, wide=[True, False])
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


@pairwise(n=[1, 4, 16], projection=["sinkhorn", "identity"], dtype=[*NARROW, torch.float32])
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
    ids=["streams", "connection", "projection", "dtype"],
)
def test_sites_without_kernels_are_told_why(site: tuple[int, str, str, torch.dtype], named: str) -> None:
    assert named in str(limits.why_not(*site))
