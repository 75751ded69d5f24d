"""What the compiler asks of the fused ops: schemas, fakes, one op and one backward op however they are traced."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tests.mhc_compile.equations import helpers
from tests.mhc_compile.equations.fused import Fused, arguments, backward_arguments, only_given
from tests.mhc_compile.equations.helpers import check, normal

OPS = ["enter", "seam", "leave"]
ops = pytest.mark.parametrize("op", OPS)
plains = pytest.mark.parametrize("plain", [False, True], ids=["streams", "plain"])
Mode = Literal["real", "fake", "symbolic"]
CASES = [
    Fused(1, 5, (3,), norm="none", offset_given=False, scale_given=False),
    Fused(3, 7, (2, 3), norm="rms_cast weight"),
    Fused(4, 1, (0,), norm="layer weight shift"),
    Fused(3, 5, (2, 3), projection="identity", norm="layer"),
    Fused(2, 5, (4,), connection="hc", norm="rms"),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


@ops
@plains
@cases
def test_opcheck(op: str, case: Fused, plain: bool) -> None:
    given = arguments(dataclasses.replace(case, plain=plain), op)
    base = None if op == "leave" else given[4 if op == "enter" else 10]
    for t in given:
        if isinstance(t, Tensor) and t is not base:
            t.requires_grad_()
    torch.library.opcheck(getattr(torch.ops.mhc, op).default, tuple(given))


@ops
@plains
@cases
def test_opcheck_backward(op: str, case: Fused, plain: bool) -> None:
    narrow = dataclasses.replace(case, plain=plain, dtype=torch.float32, branch_dtype=torch.bfloat16)
    given = backward_arguments(narrow, op)
    torch.library.opcheck(getattr(torch.ops.mhc, f"{op}_backward").default, tuple(given))


@ops
@plains
@cases
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_meta_tensors(op: str, case: Fused, plain: bool, backward: bool) -> None:
    case = dataclasses.replace(case, plain=plain, dtype=torch.bfloat16, branch_dtype=torch.float32)
    given = backward_arguments(case, op) if backward else arguments(case, op)
    function = getattr(torch.ops.mhc, f"{op}_backward" if backward else op)
    real = helpers.tensors(function(*given))
    meta = helpers.tensors(function(*(t.to("meta") if isinstance(t, Tensor) else t for t in given)))
    assert [(t.shape, t.dtype, t.is_contiguous()) for t in meta] == [(t.shape, t.dtype, True) for t in real]
    assert all(t.is_contiguous() for t in real)


@ops
@plains
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_one_op_and_one_backward_op(op: str, plain: bool, mode: Mode) -> None:
    case = Fused(3, 5, (2, 3), plain=plain)
    function, given = only_given(case.by_op(op), case.tensors(op))
    grads = [normal(*t.shape, seed=20 + i) for i, t in enumerate(helpers.tensors(function(*given)))]

    def step(grads: list[Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        return torch.autograd.grad(helpers.tensors(function(*leaves)), leaves, grads, materialize_grads=True)

    traced = make_fx(step, tracing_mode=mode)(grads, given)
    calls = [str(node.target) for node in traced.graph.nodes if "mhc" in str(node.target)]
    assert calls == [f"mhc.{op}.default", f"mhc.{op}_backward.default"]
    for actual, wanted in zip(traced(grads, given), step(grads, given), strict=True):
        assert torch.equal(actual, wanted)


@ops
@plains
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_once_for_any_number_of_tokens(op: str, plain: bool, backend: str) -> None:
    case = Fused(3, 5, (4, 2), norm="layer weight", plain=plain)
    function, given = only_given(case.by_op(op), case.tensors(op))
    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=True)
    check(compiled, only_given(case.by_equation(op), case.tensors(op))[0], given)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in ((7, 3), (2, 5)):
            other = dataclasses.replace(case, tokens=tokens)
            by_equation, given = only_given(other.by_equation(op), other.tensors(op))
            check(compiled, by_equation, given)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_sites_in_a_row(backend: str) -> None:
    """A whole chain compiles to opaque ops with plain code between them, and computes what the site ops do."""
    case = Fused(4, 6, (5,), norm="layer weight shift", plain=True)
    x, f, _, _, offset, scale, *site = case.tensors("seam")
    options, streams = case.options, (*case.options[:-1], False)

    def chain(x: Tensor, f: Tensor, offset: Tensor, scale: Tensor, *site: Tensor) -> Tensor:
        u, post, res = torch.ops.mhc.enter(x, *site, *options)[:3]
        new, u, *more = torch.ops.mhc.seam(x, (f * u).tanh(), post, res, offset, scale, 2.0, *site, *options)[:4]
        new, u, *last = torch.ops.mhc.seam(new, f + u, *more, None, None, 1.0, *site, *streams)[:4]
        return torch.ops.mhc.leave(new, u.sin(), *last, None, scale, 1.0, case.n, False)

    def by_equation(x: Tensor, f: Tensor, offset: Tensor, scale: Tensor, *site: Tensor) -> Tensor:
        first = case.by_equation("enter")
        again = dataclasses.replace(case, multiplier=2.0).by_equation("seam")
        third = dataclasses.replace(case, multiplier=1.0, plain=False)
        u, post, res = first(x, *site)
        new, u, *more = again(x, (f * u).tanh(), post, res, offset, scale, *site)
        new, u, *last = third.by_equation("seam")(new, f + u, *more, None, None, *site)
        return third.by_equation("leave")(new, u.sin(), *last, None, scale)  # type: ignore[return-value]  # one tensor

    given = [t for t in (x, f, offset, scale, *site) if t is not None]
    check(torch.compile(chain, backend=backend, fullgraph=True, dynamic=True), by_equation, given)
