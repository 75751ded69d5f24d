"""What the compiler asks of the ops: schemas, fakes, decompositions, markers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from mhc_compile.errors import NotCompiledError
from mhc_compile.ops.registration import call
from mhc_compile.ops.signatures import OPS, CoefficientsBackward, Expand, Read, Readout, Write, flat, names
from tests.equations import helpers
from tests.equations.fused import Fused, trainable
from tests.equations.helpers import (
    KINDS,
    Case,
    check,
    coefficients,
    inputs,
    normal,
    whole,
    whole_by_equation,
)
from tests.pairwise import pairwise

Mode = Literal["real", "fake", "symbolic"]
MODES: list[Mode] = ["real", "fake", "symbolic"]
Kind = tuple[str, str]  # connection and projection

SHAPES = {"one_stream": (1, 5, (3,)), "several": (3, 7, (2, 3)), "no_token": (4, 1, (0,))}  # n, C and token axes


def case_of(shape: str, kind: Kind = ("mhc", "sinkhorn"), dtype: torch.dtype = torch.float64) -> Case:
    n, c, tokens = SHAPES[shape]
    return Case(n, c, tokens, *kind, dtype)


def of_a_site(case: Case) -> dict[str, Any]:
    """What the ops that decompose take of a site, by name."""
    maps = (t.detach().requires_grad_() for t in coefficients(case)(case.streams(), *case.parameters()))
    x, f, pre, post, res = case.streams().requires_grad_(), case.branch().requires_grad_(), *maps
    return {
        "expand": Expand(f, case.n),
        "read": Read(x, pre, case.n),
        "write": Write(x, f, post, res, case.n),
        "readout": Readout(x, case.n),
    }


@pytest.mark.core(2)
@pairwise(shape=list(SHAPES), kind=KINDS)
def test_opcheck_coefficients(shape: str, kind: Kind) -> None:
    given = case_of(shape, kind).coefficients()
    for t in (given.x, given.parameters.phi, given.parameters.alpha, given.parameters.delta):
        t.requires_grad_()
    torch.library.opcheck(torch.ops.mhc.coefficients.default, tuple(flat(given)))


@pytest.mark.core(2)
@pairwise(shape=list(SHAPES), kind=KINDS)
def test_opcheck_coefficients_backward(shape: str, kind: Kind) -> None:
    given = case_of(shape, kind, torch.float32).coefficients()
    (phi, alpha, delta, base), made = given.parameters, call("coefficients", given)
    back = CoefficientsBackward(
        made.h_pre, made.h_post, made.h_res, given.x, phi, alpha, base + delta, made.y, made.r, given.maps
    )
    torch.library.opcheck(torch.ops.mhc.coefficients_backward.default, tuple(flat(back)))


@pytest.mark.core(4)
@pairwise(op=["expand", "read", "write", "readout"], shape=list(SHAPES))
def test_opcheck_ops_that_decompose(op: str, shape: str) -> None:
    given = of_a_site(case_of(shape))[op]
    torch.library.opcheck(getattr(torch.ops.mhc, op).default, tuple(flat(given)))


def targets(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if str(node.target).startswith("mhc.")]


@pytest.mark.core(1)
@pytest.mark.parametrize("mode", MODES)
def test_read_write_readout_and_expand_decompose(mode: Mode) -> None:
    for op, given in of_a_site(Case(3, 5)).items():
        function = getattr(torch.ops.mhc, op)
        tensors = [t.detach() for t in flat(given) if isinstance(t, Tensor)]
        traced = make_fx(lambda *t, g=function: g(*t, n=3), tracing_mode=mode)(*tensors)
        assert targets(traced.graph) == []
        assert len(traced.graph.nodes) > len(tensors) + 1
        assert torch.equal(traced(*tensors), function(*tensors, n=3))


@pytest.mark.core(4)
@pairwise(kind=KINDS, mode=MODES)
def test_coefficients_stay_one_op_with_a_backward_op(kind: Kind, mode: Mode) -> None:
    case = Case(3, 5, (2, 3), *kind)

    def step(pre: Tensor, post: Tensor, res: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        outputs = helpers.tensors(coefficients(case)(*leaves))
        return torch.autograd.grad(outputs, leaves, (pre, post, res), materialize_grads=True)

    arguments = [normal(2, 3, 3, seed=7), normal(2, 3, 3, seed=8), normal(2, 3, 3, 3, seed=9)]
    arguments += [case.streams(), *case.parameters()]
    traced = make_fx(step, tracing_mode=mode)(*arguments)
    assert targets(traced.graph) == ["mhc.coefficients.default", "mhc.coefficients_backward.default"]
    assert len(traced.graph.nodes) < 60  # no Sinkhorn unrolled
    for actual, wanted in zip(traced(*arguments), step(*arguments), strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.slow
def test_compiled_with_dynamic_shapes() -> None:
    case = Case(3, 5, (4,))
    torch._dynamo.reset()
    compiled = torch.compile(whole(case), backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in ((4,), (7,), (2,)):
            other = Case(3, 5, tokens)
            check(compiled, whole_by_equation(other), inputs(other))


@pairwise(shape=list(SHAPES), kind=KINDS)
def test_meta_tensors(shape: str, kind: Kind) -> None:
    given = flat(case_of(shape, kind, torch.bfloat16).coefficients())
    real = torch.ops.mhc.coefficients(*given)
    meta = torch.ops.mhc.coefficients(*(t.to("meta") if isinstance(t, Tensor) else t for t in given))
    assert [(t.shape, t.dtype) for t in meta] == [(t.shape, t.dtype) for t in real]
    assert all(t.is_contiguous() for t in (*meta, *real))


# -- the marker -------------------------------------------------------------------------------------------------------


def marked(x: Tensor) -> Tensor:
    torch.ops.mhc.site([x], name="mlp", spec="{}", entry=True, spot="")
    return x + 1


def run_eagerly() -> None:
    marked(torch.ones(2))


def run_compiled(backend: str) -> Callable[[], None]:
    def run() -> None:
        torch._dynamo.reset()
        torch.compile(marked, backend=backend)(torch.ones(2))

    return run


def run_exported() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return marked(x)

    torch.export.export(Module(), (torch.ones(2),))


@pytest.mark.parametrize(
    "run",
    [run_eagerly, run_compiled("eager"), run_compiled("aot_eager"), run_exported],
    ids=["eagerly", "compiled", "aot_eager", "exported"],
)
def test_a_marker_that_nobody_removed_raises(run: Callable[[], None]) -> None:
    with pytest.raises(NotCompiledError, match=r"'mlp'.*backend='mhc'"):
        run()


def test_a_marker_is_no_dead_code() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch.ops.mhc.site.default, ([x], "mlp", "{}", True, ""))
    graph.output(x)
    graph.eliminate_dead_code()
    assert targets(graph) == ["mhc.site.default"]


@pytest.mark.slow
@pytest.mark.parametrize("op", ["coefficients", "seam"])
def test_second_derivatives_are_refused_under_compiled_autograd(op: str) -> None:
    """Its guards take what is saved and made anew at each look, as results with a gradient are, for one tensor."""
    case = Fused(2, 3, (2,))
    by_op = coefficients(case) if op == "coefficients" else case.by_op(op)
    given = [case.streams(), *case.parameters()] if op == "coefficients" else case.tensors(op)
    x = leaf = case.streams().requires_grad_()
    for _ in range(3):
        x = x + helpers.tensors(by_op(x, *given[1:]))[0].sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        (first,) = torch.autograd.grad(x.pow(3).sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(first.pow(2).sum(), leaf)


@pytest.mark.parametrize("op", ["coefficients", "enter", "seam"])
def test_what_only_the_backward_reads_has_no_gradient(op: str) -> None:
    case = Fused(2, 3, (2,), norm="layer weight shift")
    given = case.coefficients() if op == "coefficients" else case.signature(op)
    made = dict(zip(names(OPS[op].results), getattr(torch.ops.mhc, op)(*trainable(given)), strict=True))
    assert tuple(name for name, result in made.items() if result.requires_grad) == helpers.GIVE_GRADIENTS[op]
