"""What the compiler asks of the fused ops: schemas, fakes, one op and one backward op however they are traced."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from mhc_compile.ops.signatures import flat
from tests.equations import helpers
from tests.equations.fused import FUSED, Fused, only_given, trainable
from tests.equations.helpers import check, normal
from tests.pairwise import pairwise

Mode = Literal["real", "fake", "symbolic"]
CASES = {
    "one_stream": Fused(1, 5, (3,), norm="none", offset_given=False, scale_given=False),
    "rms_cast": Fused(3, 7, (2, 3), norm="rms_cast weight"),
    "no_token": Fused(4, 1, (0,), norm="layer weight shift"),
    "identity": Fused(3, 5, (2, 3), projection="identity", norm="layer"),
    "hc": Fused(2, 5, (4,), connection="hc", norm="rms"),
}
EQUAL = [False, True]


@pytest.mark.core(2)
@pairwise(op=FUSED, case=list(CASES), equal=EQUAL)
def test_opcheck(op: str, case: str, equal: bool) -> None:
    given = dataclasses.replace(CASES[case], equal_streams=equal).signature(op)
    torch.library.opcheck(getattr(torch.ops.mhc, op).default, tuple(trainable(given)))


@pytest.mark.core(2)
@pairwise(op=FUSED, case=list(CASES), equal=EQUAL)
def test_opcheck_backward(op: str, case: str, equal: bool) -> None:
    narrow = dataclasses.replace(CASES[case], equal_streams=equal, dtype=torch.float32, branch_dtype=torch.bfloat16)
    given = narrow.backward_signature(op)
    torch.library.opcheck(getattr(torch.ops.mhc, f"{op}_backward").default, tuple(flat(given)))


@pairwise(op=FUSED, case=list(CASES), equal=EQUAL, backward=[False, True])
def test_meta_tensors(op: str, case: str, equal: bool, backward: bool) -> None:
    narrow = dataclasses.replace(CASES[case], equal_streams=equal, dtype=torch.bfloat16, branch_dtype=torch.float32)
    given = flat(narrow.backward_signature(op) if backward else narrow.signature(op))
    function = getattr(torch.ops.mhc, f"{op}_backward" if backward else op)
    real = helpers.tensors(function(*given))
    meta = helpers.tensors(function(*(t.to("meta") if isinstance(t, Tensor) else t for t in given)))
    assert [(t.shape, t.dtype, t.is_contiguous()) for t in meta] == [(t.shape, t.dtype, True) for t in real]
    assert all(t.is_contiguous() for t in real)


@pytest.mark.core(3)
@pairwise(op=FUSED, mode=["real", "fake", "symbolic"], equal=EQUAL)
def test_one_op_and_one_backward_op(op: str, mode: Mode, equal: bool) -> None:
    case = Fused(3, 5, (2, 3), equal_streams=equal)
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


@pytest.mark.core(2)
@pytest.mark.parametrize("op", FUSED)
@pytest.mark.parametrize("equal", EQUAL, ids=["streams", "equal"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_once_for_any_number_of_tokens(op: str, equal: bool, backend: str) -> None:
    case = Fused(3, 5, (4, 2), norm="layer weight", equal_streams=equal)
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
    case = Fused(4, 6, (5,), norm="layer weight shift", multiplier=2.0, equal_streams=True)
    later = dataclasses.replace(case, multiplier=1.0, equal_streams=False)
    x, f, _, _, offset, scale, *site = case.tensors("seam")
    first, second, third, last = case.by_op("enter"), case.by_op("seam"), later.by_op("seam"), later.by_op("leave")

    def chain(x: Tensor, f: Tensor, offset: Tensor, scale: Tensor, *site: Tensor) -> Tensor:
        u, *maps = first(x, *site)
        new, u, *maps = second(x, (f * u).tanh(), *maps, offset, scale, *site)
        new, u, *maps = third(new, f + u, *maps, None, None, *site)
        return last(new, u.sin(), *maps, None, scale)  # type: ignore[return-value]  # one tensor

    def by_equation(x: Tensor, f: Tensor, offset: Tensor, scale: Tensor, *site: Tensor) -> Tensor:
        u, *maps = case.by_equation("enter")(x, *site)
        new, u, *maps = case.by_equation("seam")(x, (f * u).tanh(), *maps, offset, scale, *site)
        new, u, *maps = later.by_equation("seam")(new, f + u, *maps, None, None, *site)
        return later.by_equation("leave")(new, u.sin(), *maps, None, scale)  # type: ignore[return-value]  # one tensor

    given = [t for t in (x, f, offset, scale, *site) if t is not None]
    check(torch.compile(chain, backend=backend, fullgraph=True, dynamic=True), by_equation, given)
