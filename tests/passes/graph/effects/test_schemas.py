"""What an op changes, and whether it is a function of its arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from mhc_compile.passes.graph.effects import schemas
from tests.nets.structures import Layer, Step, graph, tokens


@torch.library.custom_op("mhc_tests::fill", mutates_args=("out",))
def fill(x: Tensor, out: Tensor) -> None:
    out.copy_(x)


@fill.register_fake
def _(x: Tensor, out: Tensor) -> None: ...


def own(x: Tensor) -> Tensor:
    return x.exp()


torch.compiler.allow_in_graph(own)


def ipow(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    y **= 2
    return y


def foreach(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    torch._foreach_add_([y], 1.0)
    return y


def custom(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    torch.ops.mhc_tests.fill(x, y)
    return y


def out(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    torch.mul(x, 2, out=y)
    return y


def item(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    y[0] = 1.0
    return y


def statistics(_: Any, x: Tensor) -> Tensor:
    y = x.sin()[0, 0]
    F.batch_norm(x.mT, y, y + 1, training=True)
    return y


CHANGING: dict[str, Step] = {
    "relu_": lambda _, x: torch.relu_(x.sin()),
    "F.relu_": lambda _, x: F.relu_(input=x.sin()),
    "inplace": lambda _, x: F.relu(x.sin(), True),
    "+=": lambda _, x: x.sin().__iadd__(x),
    "aten": lambda _, x: torch.ops.aten.add_.Tensor(x.sin(), x),
    "**=": ipow,
    "foreach": foreach,
    "custom": custom,
    "out": out,
    "item": item,
}


@pytest.mark.parametrize("step", CHANGING.values(), ids=CHANGING.keys())
def test_what_is_changed(step: Step) -> None:
    gm = graph(Layer(step), tokens())
    changed = {target.name for node in gm.graph.nodes for target in schemas.changed(node)}
    assert {name.split("_")[0] for name in changed} in ({"sin"}, {"y"})


@pytest.mark.parametrize(
    "step", [lambda _, x: x.sin() + x, lambda _, x: checkpoint(torch.sin, x, use_reentrant=False)], ids=["add", "body"]
)
def test_nothing_is_changed(step: Step) -> None:
    assert not any(schemas.changed(node) for node in graph(Layer(step), tokens()).graph.nodes)


def test_statistics_are_changed() -> None:
    gm = graph(Layer(statistics), tokens())
    (norm,) = [node for node in gm.graph.nodes if "batch_norm" in node.name]
    assert schemas.changed(norm) == [*norm.args[1:3]]


@pytest.mark.parametrize("op", ["mul_", "mul"])
def test_what_an_op_changes_inside(op: str) -> None:
    """Its own graph writes to a view of an input."""
    body, outer = fx.Graph(), fx.Graph()
    body.output((body.call_method(op, (body.call_method("view", (body.placeholder("x"), -1)), 2)),))
    x = outer.placeholder("x")
    called = outer.call_function(torch.ops.higher_order.tag_activation_checkpoint, (outer.get_attr("body"), x))
    outer.output(called)
    root = nn.Module()
    root.body = fx.GraphModule(nn.Module(), body)
    (*_, held, _) = fx.GraphModule(root, outer).graph.nodes
    assert [node.name for node in schemas.changed(held)] == (["x"] if op == "mul_" else [])


@pytest.mark.parametrize(
    ("step", "function"),
    [
        pytest.param(lambda self, x: self.proj(x), True, id="linear"),
        pytest.param(lambda _, x: x.softmax(-1), True, id="softmax"),
        pytest.param(lambda _, x: torch.cumsum(x, 1), True, id="cumsum"),
        pytest.param(lambda _, x: torch.rand_like(x), False, id="rand_like"),
        pytest.param(lambda _, x: F.dropout(x, 0.5, True), False, id="dropout"),
        pytest.param(lambda _, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), False, id="attention"),
        pytest.param(lambda _, x: torch.relu_(x), False, id="relu_"),
        pytest.param(lambda _, x: own(x), False, id="unknown"),
        pytest.param(lambda _, x: checkpoint(torch.sin, x, use_reentrant=False), False, id="checkpoint"),
    ],
)
def test_what_is_a_function_of_its_arguments(step: Step, function: bool) -> None:
    nodes = [node for node in graph(Layer(step), tokens()).graph.nodes if node.op.startswith("call")]
    assert all(schemas.is_function(node) for node in nodes) == function


def test_what_torch_knows() -> None:
    def step(_: Any, x: Tensor) -> Tensor:
        torch.ops.mhc_tests.fill(x, x.sin())
        return own(F.interpolate(x, 2).sin())

    gm = graph(Layer(step), tokens())
    nodes = [node for node in gm.graph.nodes if node.op.startswith("call")]
    assert [schemas.is_known(node) for node in nodes] == [True, True, True, True, False]
    assert [schemas.is_of_torch(node) for node in nodes] == [True, False, True, True, False]
