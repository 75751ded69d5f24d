"""Bodies of activation checkpoints become part of the graph, tagged as the op itself tags what is traced."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.registry import lookup_backend
from torch.utils.checkpoint import CheckpointPolicy, checkpoint

from mhc_compile.capture.graphs import copy_graph
from mhc_compile.passes.graph import checkpoints, optable
from tests.nets.small import gradients, same
from tests.nets.structures import C, Layer, ops, rewritten, tokens

_OP = torch.ops.higher_order.tag_activation_checkpoint


def traced(model: nn.Module, *args: Any) -> fx.GraphModule:
    """Dynamo's graph, with its checkpoints as they are."""
    graphs: list[fx.GraphModule] = []

    def record(gm: fx.GraphModule, inputs: Any) -> Any:
        graphs.append(gm)
        return gm.forward

    torch.compile(model, backend=record)(*args)
    (gm,) = graphs
    return gm


class Twice(nn.Module):
    """Two checkpoints with an op in between, which is not recomputed; one returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(C, C), nn.Linear(C, C), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        def first(x: Tensor) -> tuple[Tensor, Tensor]:
            return x + self.drop(self.a(x).tanh()), x.exp()

        def second(x: Tensor) -> Tensor:
            return x + self.b(x.sin())

        x, y = checkpoint(first, x, use_reentrant=False)
        out: Tensor = checkpoint(second, x.cos(), use_reentrant=False) * y
        return out


def kept(gm: fx.GraphModule) -> list[tuple[str, Any, Any]]:
    """Op, policy and region of every node of a graph without inputs and output."""
    calls = [node for node in gm.graph.nodes if node.op == "call_function" or node.op == "call_method"]
    return [(optable.name(n), n.meta.get("recompute"), n.meta.get("ac_graph_id")) for n in calls]


def test_bodies_are_spliced_with_tags() -> None:
    """Before: checkpoint, getitem, getitem, cos, checkpoint, getitem, mul."""
    gm = copy_graph(traced(Twice(), tokens()))
    before = len(ops(gm))
    checkpoints.splice(gm)
    gm.graph.lint()
    again = CheckpointPolicy.PREFER_RECOMPUTE
    assert before == 7
    assert kept(gm) == [
        ("linear", again, 0), ("tanh", again, 0), ("dropout", again, 0), ("add", again, 0), ("exp", again, 0),
        ("cos", None, None),
        ("sin", again, 1), ("linear", again, 1), ("add", again, 1),
        ("mul", None, None),
    ]  # fmt: skip
    assert not gm.graph.find_nodes(op="get_attr")
    assert all("example_value" in node.meta for node in gm.graph.nodes if node.op != "output")


def partitioned(gm: fx.GraphModule, args: Any) -> tuple[Any, list[Any], int]:
    """Output and gradients of a graph under aot_eager, and the bytes it saves."""
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    torch.manual_seed(1)
    run = lookup_backend("aot_eager")(gm, args)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run(*args)
    return out, gradients(out, [arg for arg in args if arg.requires_grad]), saved


def test_the_partitioner_treats_both_alike() -> None:
    """The same is saved, and dropout draws the same again, whether the op is there or its body."""
    gm = traced(Twice(), tokens(16, 32))
    values = [node.meta["example_value"] for node in gm.graph.find_nodes(op="placeholder")]
    args = [torch.randn(v.shape, requires_grad=True) for v in values]
    spliced, plain = copy_graph(gm), copy_graph(gm)
    checkpoints.splice(spliced)
    spliced.recompile()
    checkpoints.splice(plain)
    for node in plain.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key not in checkpoints.tags(node)}
    plain.recompile()
    (out, grads, saved), (expected, wanted, same_bytes) = (partitioned(g, args) for g in (spliced, copy_graph(gm)))
    assert torch.equal(out[0], expected[0])
    assert same(grads, wanted)
    assert saved == same_bytes < partitioned(plain, args)[2]


def test_the_graph_of_dynamo_stays_as_it_is() -> None:
    gm = traced(Twice(), tokens())
    text, bodies = gm.print_readable(print_output=False), len(dict(checkpoints.bodies(gm)))
    checkpoints.splice(copy_graph(gm))
    checkpoints.run_eagerly(copy_graph(gm))
    assert gm.print_readable(print_output=False) == text
    assert bodies == 2


def test_what_a_site_emits_is_recomputed_with_its_body() -> None:
    def step(self: Layer, x: Tensor) -> Tensor:
        return x + self.proj(self.norm(x))

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Layer(step), Layer(step)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x * 2)
            out: Tensor = checkpoint(self.two, x, use_reentrant=False)
            return out

    made, _ = rewritten(copy_graph(traced(Pair(), tokens())), recompute="off")
    regions: dict[str, set[Any]] = {}
    for node in made.graph.nodes:
        if "mhc_site" in node.meta:
            regions.setdefault(node.meta["mhc_site"], set()).add(node.meta.get("ac_graph_id"))
    assert regions == {"one.proj": {None}, "two.proj": {0}}


class Inner(nn.Module):
    """What Dynamo makes of an op that runs a graph, and of a constant."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.register_buffer("one", torch.full((C,), number))


def apply(f: Any, x: Tensor) -> Any:
    return f(x)


def test_what_a_body_holds_comes_along() -> None:
    """Constants, and graphs that its ops run: under other names, for the graph may hold its own."""
    inner, body, outer = (fx.Graph() for _ in range(3))
    inner.output(inner.call_function(torch.sin, (inner.placeholder("x"),)))
    holder = Inner(2.0)
    holder.inner = fx.GraphModule(nn.Module(), inner)
    x = body.placeholder("x")
    called = body.call_function(apply, (body.get_attr("inner"), x))
    body.output((body.call_function(torch.add, (called, body.get_attr("one"))),))
    root = Inner(3.0)
    root.body = fx.GraphModule(holder, body)
    y = outer.call_function(_OP, (outer.get_attr("body"), outer.placeholder("x")), {"use_reentrant": False})
    y = outer.call_function(operator.getitem, (y, 0))
    outer.output(outer.call_function(torch.mul, (y, outer.get_attr("one"))))
    gm = fx.GraphModule(root, outer)
    checkpoints.splice(gm)
    gm.recompile()
    assert ops(gm) == ["apply", "add", "mul"]
    torch.testing.assert_close(gm(torch.ones(C)), (torch.ones(C).sin() + 2) * 3)
    (inside,) = [body for _, body in checkpoints.bodies(gm)]
    assert all(checkpoints.tags(node) for node in inside.graph.nodes)


class Modes(nn.Module):
    """Checkpoints with gradients, without, and in inference mode, where gradients are on at the start."""

    def forward(self, x: Tensor) -> Tensor:
        a = checkpoint(torch.sin, x, use_reentrant=False)
        with torch.no_grad():
            b = checkpoint(torch.cos, x, use_reentrant=False)
            with torch.enable_grad():
                a = a + checkpoint(torch.tanh, x, use_reentrant=False)
            with torch.inference_mode():
                b = b + checkpoint(torch.exp, x, use_reentrant=False)
            b = b + checkpoint(torch.erf, x, use_reentrant=False)
        out: Tensor = a + b + checkpoint(torch.abs, x, use_reentrant=False)
        return out


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("needed", [True, False])
def test_tags_stay_where_a_backward_is_to_come(grad: bool, needed: bool) -> None:
    x = tokens().detach().requires_grad_(needed)
    with torch.set_grad_enabled(grad):
        gm = copy_graph(traced(Modes(), x))
        checkpoints.splice(gm)
        assert all(checkpoints.tags(node) for node in gm.graph.nodes if optable.name(node) in ("sin", "cos", "exp"))
        checkpoints.untag(gm, [x])
    recorded = {"sin", "tanh", "abs"} if grad else {"tanh"}
    found = {optable.name(node) for node in gm.graph.nodes if checkpoints.tags(node)}
    assert found == (recorded if needed else set())


def test_nothing_to_splice() -> None:
    gm = traced(nn.Linear(C, C), tokens())
    text = str(gm.graph)
    checkpoints.splice(gm)
    assert str(gm.graph) == text
