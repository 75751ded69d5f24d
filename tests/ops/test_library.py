from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from mhc_compile.errors import ConfigError, NotCompiledError
from mhc_compile.ops import library
from tests.ops import helpers
from tests.ops.helpers import TOKENS, Case, check, coefficients, near, normal, ops, spread_out

KINDS = [("mhc", "sinkhorn"), ("mhc", "identity"), ("hc", "sinkhorn")]
kinds = pytest.mark.parametrize(("connection", "projection"), KINDS, ids=str)
streams = pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
narrow = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def inputs(case: Case) -> list[Tensor]:
    return [case.streams(), case.branch(), *case.parameters()]


def whole(case: Case) -> helpers.Function:
    """One site by the ops: what the branch reads, the new streams, their readout."""

    def run(x: Tensor, f: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        pre, post, res = coefficients(case)(x, *parameters)
        u = torch.ops.mhc.read(x, pre, case.n)
        new = torch.ops.mhc.write(x, f * u, post, res, case.n)
        return u, new, torch.ops.mhc.readout(new, case.n)

    return run


def whole_by_equation(case: Case) -> helpers.Function:
    def run(x: Tensor, f: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        pre, post, res = case.reference(x, *parameters)
        u = helpers.read(x, pre, case.n)
        new = helpers.write(x, f * u, post, res, case.n)
        return u, new, helpers.readout(new, case.n)

    return run


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

    def pick(function: helpers.Function) -> helpers.Function:
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
@pytest.mark.parametrize("stream_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_no_bit(
    connection: str, projection: str, dtype: torch.dtype, stream_dtype: torch.dtype
) -> None:
    case = Case(4, 7, (5, 2), connection, projection, stream_dtype)
    outside = helpers.values_and_gradients(whole(case), inputs(case), wide=False)
    with torch.autocast("cpu", dtype):
        inside = helpers.values_and_gradients(whole(case), inputs(case), wide=False)
    for actual, wanted in zip(itertools.chain(*inside), itertools.chain(*outside), strict=True):
        assert actual.dtype == wanted.dtype
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_accumulator(dtype: torch.dtype, wide: torch.dtype) -> None:
    assert library.accumulator(dtype) == wide


@streams
@narrow
def test_readout_of_narrow_copies_is_the_copy(n: int, dtype: torch.dtype) -> None:
    x = normal(50, 7, dtype=dtype)
    assert torch.equal(torch.ops.mhc.readout(torch.ops.mhc.expand(x, n), n), x)


# -- what the compiler asks of an op ----------------------------------------------------------------------------------

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
def test_read_write_readout_and_expand_decompose(mode: str) -> None:
    case = Case(3, 5)
    x, f = case.streams(), case.branch()
    pre, post, res = coefficients(case)(x, *case.parameters())
    for op, arguments in {"expand": (f,), "read": (x, pre), "write": (x, f, post, res), "readout": (x,)}.items():
        traced = make_fx(lambda *t, g=ops(op): g(*t, 3), tracing_mode=mode)(*arguments)
        assert targets(traced.graph) == []
        assert len(traced.graph.nodes) > len(arguments) + 1
        assert torch.equal(traced(*arguments), ops(op)(*arguments, 3))


@kinds
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_coefficients_stay_one_op_with_a_backward_op(connection: str, projection: str, mode: str) -> None:
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


@kinds
def test_compiled_with_dynamic_shapes(connection: str, projection: str) -> None:
    case = Case(3, 5, (4,), connection, projection)
    torch._dynamo.reset()
    compiled = torch.compile(whole(case), backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in ((4,), (7,), (2,)):
            other = Case(3, 5, tokens, connection, projection)
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


@kinds
def test_second_derivatives_are_refused_not_wrong(connection: str, projection: str) -> None:
    case = Case(3, 5, (2,), connection, projection)
    x = case.streams().requires_grad_()
    total = coefficients(case)(x, *case.parameters())[0].pow(3).sum()
    (first,) = torch.autograd.grad(total, x, create_graph=True)  # some trainers ask for it without need
    near(first, torch.autograd.grad(case.reference(x, *case.parameters())[0].pow(3).sum(), x)[0], 1e-12)
    with pytest.raises(NotImplementedError, match=r"second derivatives .*mhc_compile\.plain"):
        torch.autograd.grad(first.pow(2).sum(), x)


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


def test_unknown_connection_is_named() -> None:
    case = Case(2, 5)
    with pytest.raises(ConfigError, match="connection must be one of"):
        torch.ops.mhc.coefficients(case.streams(), *case.parameters(), 2, "mch", "sinkhorn", 20, 1e-6)
