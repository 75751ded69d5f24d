"""The facts about torch that capture/ stands on, and what a captured run shows."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.symbolic_convert import InstructionTranslator

from mhc_compile.capture.frames import clean_errors, frame_root, serve_alike, serve_only, traced_with
from mhc_compile.capture.graphs import without_markers
from mhc_compile.capture.model_run import run_captured
from mhc_compile.capture.owners import Stack
from mhc_compile.errors import CaptureError, ConfigError, MHCError
from tests.nets.small import Block, Net, inputs, made, upgraded


def graphs_of(
    function: Callable[..., Any], *args: Any, look: Callable[[fx.GraphModule], None] | None = None
) -> list[fx.GraphModule]:
    """The graphs that a backend is given."""
    found: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        found.append(gm)
        if look is not None:
            look(gm)
        return gm.forward

    torch.compile(function, backend=backend)(*args)
    return found


def adds(gm: fx.GraphModule) -> list[fx.Node]:
    return gm.graph.find_nodes(op="call_function", target=operator.add)


def test_module_stack_maps_ids_to_sources() -> None:
    """Innermost last, without an entry for the compiled module itself."""
    model = made()
    (gm,) = graphs_of(model, inputs())
    first = adds(gm)[0].meta["nn_module_stack"]
    assert [key.partition("@")[0] for key in first] == [str(id(model.get_submodule("blocks.0")))]
    assert [str(source) for source, _ in first.values()] == ["L['self'].blocks.0"]
    stem = gm.graph.find_nodes(op="call_function", target=torch._C._nn.linear)[0]
    assert str(id(model)) not in stem.meta["nn_module_stack"]


def test_names_of_owners_and_children() -> None:
    model = made()
    (gm,) = graphs_of(model, inputs())
    paths = {id(module): path for path, module in model.named_modules()}
    for namer in (Stack(), Stack(paths)):
        assert [namer.owner(node) for node in adds(gm)] == ["blocks.0", "blocks.0", "blocks.1", "blocks.1"]
        works = [node for node in gm.graph.nodes if "linear" in str(node.target)]
        assert [namer.child(node, "blocks.1") for node in works] == [None] * 4 + ["attn", "mlp", "mlp", None]
        assert namer.child(works[0], "") == "stem"


class Function(nn.Module):
    """The add is in the root's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layer(x)
        return out


def test_owner_of_the_root() -> None:
    (gm,) = graphs_of(Function(), inputs())
    assert Stack().owner(adds(gm)[0]) == ""
    assert Stack(root="outer").owner(adds(gm)[0]) == "outer"


def test_a_module_under_two_names_has_one() -> None:
    block = Block()
    model = nn.Sequential(block, nn.Tanh(), block)
    (gm,) = graphs_of(model, torch.randn(2, 16))
    namer = Stack()
    assert [namer.owner(node) for node in adds(gm)] == ["0"] * 4


@pytest.mark.parametrize("how", ["module", "forward", "closure", "sequential"])
def test_frame_root(how: str) -> None:
    model: nn.Module = nn.Sequential(Block(16), Block(16)) if how == "sequential" else made()
    x = torch.randn(2, 16) if how == "sequential" else inputs()
    functions: dict[str, Callable[..., Any]] = {"forward": model.forward, "closure": lambda x: model(x)}
    roots: list[nn.Module | None] = []
    graphs_of(functions.get(how, model), x, look=lambda _: roots.append(frame_root()))
    assert [root is model for root in roots] == [True]


def test_frame_root_of_functions() -> None:
    first, second = made(), made(seed=1)
    roots: list[nn.Module | None] = []
    graphs_of(lambda x: first(x) + second(x), inputs(), look=lambda _: roots.append(frame_root()))
    graphs_of(lambda x: x + 1, inputs(), look=lambda _: roots.append(frame_root()))
    assert roots == [None, None]


def test_frame_root_behind_a_break() -> None:
    """The resumed frame still holds the module."""

    class Broken(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks[0](self.stem(x))
            torch._dynamo.graph_break()
            out: Tensor = self.head(self.blocks[1](x))
            return out

    model = made(Broken)
    roots: list[nn.Module | None] = []
    graphs_of(model, inputs(), look=lambda _: roots.append(frame_root()))
    assert [root is model for root in roots] == [True, True]


@pytest.mark.parametrize("kept", [False, True])
def test_serve_only(kept: bool) -> None:
    """Modules of one class share code, unless it is kept to one of them."""
    compilations = 0

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        nonlocal compilations
        compilations += 1
        root = frame_root()
        assert root is not None
        if kept:
            serve_only(root)
        return gm.forward

    for seed in (0, 1):
        model = made(seed=seed)
        for _ in range(2):
            torch.compile(model, backend=backend)(inputs())
    assert compilations == (2 if kept else 1)


@pytest.mark.parametrize(
    ("alike", "compiled"),
    [((), "a1 b1 a2"), (("kind",), "a1 a2"), (("kind", "number"), "a1")],
    ids=["none", "one", "both"],
)
def test_serve_alike(alike: tuple[str, ...], compiled: str) -> None:
    """Modules share code although they differ in what it does not depend on; in what it does, they do not."""

    class Scaled(nn.Module):
        def __init__(self, kind: str, number: str) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.kind, self.number = kind, number

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight if self.kind + self.number else x

    found: list[str] = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        root: Any = frame_root()
        found.append(root.kind + root.number)
        (held,) = (each for each in gm.graph.find_nodes(op="placeholder") if traced_with(each) is root.weight)
        for name in alike:
            serve_alike(held, name)
        return gm.forward

    for kind, number in ("a1", "b1", "a2"):
        torch.compile(Scaled(kind, number), backend=backend)(torch.ones(3))
    assert " ".join(found) == compiled


def decorated(forward: Callable[..., Any]) -> Callable[..., Any]:
    """As libraries that check or rename arguments do."""

    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return wrapper


class Decorated(Net):
    forward = decorated(Net.forward)


def test_a_decorated_forward_has_a_root() -> None:
    roots: list[nn.Module | None] = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        roots.append(root := frame_root())
        assert root is not None
        serve_only(root)
        return gm.forward

    models = [made(Decorated, seed=seed) for seed in (0, 1)]
    for model in models:
        torch.compile(model, backend=backend)(inputs())
    assert roots == models


def test_current_frame_is_known_while_a_backend_runs() -> None:
    codes: list[Any] = []
    graphs_of(made(), inputs(), look=lambda _: codes.append(InstructionTranslator.current_tx().output.root_tx.f_code))
    assert codes == [Net.forward.__code__]


def test_errors_leave_dynamo_as_they_are() -> None:
    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        with clean_errors():
            raise ConfigError("mine")

    with pytest.raises(MHCError) as caught:
        torch.compile(made(), backend=backend)(inputs())
    assert type(caught.value) is ConfigError
    assert str(caught.value) == "mine"


def test_other_errors_are_left_to_dynamo() -> None:
    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        with clean_errors():
            raise ZeroDivisionError

    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
        torch.compile(made(), backend=backend)(inputs())


def test_captured_run() -> None:
    model = made()
    captured = run_captured(model, (inputs(),), {})
    assert len(captured.graphs) == 1
    assert captured.breaks == ()
    assert torch.equal(captured.output, model(inputs()))
    (graph,) = captured.graphs
    assert len(captured.calls) == 1
    assert any(torch.equal(tensor, inputs()) for tensor in graph.inputs)
    assert torch.equal(graph.outputs[0], captured.output)


def test_captured_run_leaves_settings_and_compiled_code_alone() -> None:
    model = upgraded()
    model.compile(backend="mhc", options={"compiler": "eager"})
    expected = model(inputs())
    held, limit = model._compiled_call_impl, torch._dynamo.config.recompile_limit
    with torch._dynamo.config.patch(error_on_recompile=True):
        run_captured(upgraded(), (inputs(),), {})
    with pytest.raises(CaptureError):
        run_captured(model, (), {})
    assert model._compiled_call_impl is held
    assert torch._dynamo.config.recompile_limit == limit
    assert torch.equal(model(inputs()), expected)


def test_captured_run_passes_the_limits_of_training_loops() -> None:
    model = made()
    with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1):
        for length in (2, 3, 4):
            assert len(run_captured(model, (inputs(2, length),), {}).graphs) == 1


def test_sizes_seen_before_make_none_dynamic_and_a_captured_run_none_later() -> None:
    """Automatic dynamic shapes remember sizes by the code of a forward, of whatever model and backend."""
    model, sizes = made(), list[bool]()

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        sizes.append(any(isinstance(each, torch.SymInt) for each in example_inputs))
        return gm.forward

    run_captured(model, (inputs(4, 5),), {})
    other = torch.compile(model, backend=backend)
    other(inputs(3, 5))
    other(inputs(2, 5))
    assert sizes == [False, True]
    for length in (6, 7):
        (graph,) = run_captured(model, (inputs(2, length),), {}).graphs
        assert all(isinstance(each, Tensor) for each in graph.inputs)


def test_without_markers_copies() -> None:
    model = upgraded()
    found: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        found.append(gm)
        return without_markers(gm).forward

    out = torch.compile(model, backend=backend)(inputs())
    marker = torch.ops.mhc.site.default
    assert len(found[0].graph.find_nodes(op="call_function", target=marker)) == 4
    assert not without_markers(found[0]).graph.find_nodes(op="call_function", target=marker)
    assert torch.equal(out, made()(inputs()))
