"""What the compiler asks of the ops: schemas, fakes, decompositions, markers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from mhc_compile.errors import NotCompiledError
from tests.mhc_compile.equations import helpers
from tests.mhc_compile.equations.helpers import Case, check, coefficients, inputs, normal, whole, whole_by_equation

KINDS = [("mhc", "sinkhorn"), ("mhc", "identity"), ("hc", "sinkhorn")]
kinds = pytest.mark.parametrize(("connection", "projection"), KINDS, ids=str)
Mode = Literal["real", "fake", "symbolic"]

SHAPES = [(1, 5, (3,)), (3, 7, (2, 3)), (4, 1, (0,))]
shapes = pytest.mark.parametrize(("n", "c", "tokens"), SHAPES, ids=str)


@shapes
@kinds
def test_opcheck_coefficients(n: int, c: int, tokens: tuple[int, ...], connection: str, projection: str) -> None:
    case = Case(n, c, tokens, connection, projection)
    x, phi, alpha, delta, base = (t.requires_grad_() for t in (case.streams(), *case.parameters()))
    torch.library.opcheck(torch.ops.mhc.coefficients.default, (x, phi, alpha, delta, base.detach(), *case.arguments))


@shapes
@kinds
def test_opcheck_coefficients_backward(
    n: int, c: int, tokens: tuple[int, ...], connection: str, projection: str
) -> None:
    case = Case(n, c, tokens, connection, projection, torch.float32)
    x, (phi, alpha, delta, base) = case.streams(), case.parameters()
    pre, post, res, y, r = torch.ops.mhc.coefficients(x, phi, alpha, delta, base, *case.arguments)
    arguments = (pre, post, res, x, phi, alpha, base + delta, y, r, *case.arguments)
    torch.library.opcheck(torch.ops.mhc.coefficients_backward.default, arguments)


@shapes
@pytest.mark.parametrize("op", ["expand", "read", "write", "readout"])
def test_opcheck_ops_that_decompose(n: int, c: int, tokens: tuple[int, ...], op: str) -> None:
    case = Case(n, c, tokens)
    x, f = case.streams().requires_grad_(), case.branch().requires_grad_()
    pre, post, res = (t.detach().requires_grad_() for t in coefficients(case)(x, *case.parameters()))
    arguments = {"expand": (f,), "read": (x, pre), "write": (x, f, post, res), "readout": (x,)}[op]
    torch.library.opcheck(getattr(torch.ops.mhc, op).default, (*arguments, n))


def targets(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if str(node.target).startswith("mhc.")]


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_read_write_readout_and_expand_decompose(mode: Mode) -> None:
    case = Case(3, 5)
    x, f = case.streams(), case.branch()
    pre, post, res = coefficients(case)(x, *case.parameters())
    for op, arguments in {"expand": (f,), "read": (x, pre), "write": (x, f, post, res), "readout": (x,)}.items():
        function = getattr(torch.ops.mhc, op)
        traced = make_fx(lambda *t, g=function: g(*t, 3), tracing_mode=mode)(*arguments)
        assert targets(traced.graph) == []
        assert len(traced.graph.nodes) > len(arguments) + 1
        assert torch.equal(traced(*arguments), function(*arguments, 3))


@kinds
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_coefficients_stay_one_op_with_a_backward_op(connection: str, projection: str, mode: Mode) -> None:
    case = Case(3, 5, (2, 3), connection, projection)

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


def test_compiled_with_dynamic_shapes() -> None:
    case = Case(3, 5, (4,))
    torch._dynamo.reset()
    compiled = torch.compile(whole(case), backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in ((4,), (7,), (2,)):
            other = Case(3, 5, tokens)
            check(compiled, whole_by_equation(other), inputs(other))


@shapes
@kinds
def test_meta_tensors(n: int, c: int, tokens: tuple[int, ...], connection: str, projection: str) -> None:
    case = Case(n, c, tokens, connection, projection, torch.bfloat16)
    arguments = case.streams(), *case.parameters()
    real = torch.ops.mhc.coefficients(*arguments, *case.arguments)
    meta = torch.ops.mhc.coefficients(*(t.to("meta") for t in arguments), *case.arguments)
    assert [(t.shape, t.dtype) for t in meta] == [(t.shape, t.dtype) for t in real]
    assert all(t.is_contiguous() for t in (*meta, *real))


# -- the marker -------------------------------------------------------------------------------------------------------


def marked(x: Tensor) -> Tensor:
    torch.ops.mhc.site([x], "mlp", "{}", True)
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
    "run", [run_eagerly, run_compiled("eager"), run_compiled("aot_eager"), run_exported], ids=lambda f: f.__qualname__
)
def test_a_marker_that_nobody_removed_raises(run: Callable[[], None]) -> None:
    with pytest.raises(NotCompiledError, match=r"'mlp'.*backend='mhc'"):
        run()


def test_a_marker_is_no_dead_code() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch.ops.mhc.site.default, ([x], "mlp", "{}", True))
    graph.output(x)
    graph.eliminate_dead_code()
    assert targets(graph) == ["mhc.site.default"]
