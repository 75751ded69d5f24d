"""The table of op families: every entry is an op, and every spelling of an op has its name."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from mhc_compile.passes.graph import optable
from tests.nets.structures import C, Layer, Step, graph, tokens

FAMILIES = {name: value for name, value in vars(optable).items() if isinstance(value, frozenset) and name.isupper()}
PLACES = (torch, F, Tensor, operator, torch.ops.aten)


def nodes(step: Step) -> list[fx.Node]:
    gm = graph(Layer(step), tokens())
    return [node for node in gm.graph.nodes if node.op in ("call_function", "call_method")]


def last(step: Step) -> fx.Node:
    return nodes(step)[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_entry_is_an_op(family: str) -> None:
    extra = {"getattr", "rsub", "truediv", "sym_size", "stride", "shape"} | optable.SPREAD  # of DTensors, and ours
    assert [op for op in sorted(FAMILIES[family] - extra) if not any(hasattr(place, op) for place in PLACES)] == []


@pytest.mark.parametrize(
    ("step", "name"),
    [
        pytest.param(lambda _, x: x + x, "add", id="x + x"),
        pytest.param(lambda _, x: torch.add(x, x), "add", id="add(x, x)"),
        pytest.param(lambda _, x: x.add(x), "add", id="x.add(x)"),
        pytest.param(lambda _, x: x.clone().add_(x), "add", id="x.clone().add_(x)"),
        pytest.param(lambda _, x: torch.ops.aten.add.Tensor(x, x), "add", id="aten.add.Tensor(x, x)"),
        pytest.param(lambda _, x: operator.iadd(x.clone(), x), "add", id="operator.iadd(x.clone(), x)"),  # type: ignore[no-untyped-call]
        pytest.param(lambda _, x: x / 2, "truediv", id="x / 2"),
        pytest.param(lambda _, x: operator.itruediv(x.clone(), 2), "truediv", id="operator.itruediv(x.clone(), 2)"),  # type: ignore[no-untyped-call]
        pytest.param(lambda _, x: F.layer_norm(x, (C,)), "layer_norm", id="layer_norm(x, (C,))"),
        pytest.param(lambda _, x: torch.layer_norm(x, (C,)), "layer_norm", id="layer_norm(x, (C,))"),
        pytest.param(lambda _, x: F.relu(x, inplace=False), "relu", id="relu(x, inplace=False)"),
        pytest.param(lambda _, x: torch.ops.aten.slice.Tensor(x, 1, 0, 2), "slice", id="aten.slice.Tensor(x, 1, 0, 2)"),
    ],
)
def test_one_name_for_every_spelling(step: Step, name: str) -> None:
    assert optable.name(last(step)) == name


def test_inputs_have_no_name() -> None:
    placeholder = next(iter(graph(Layer(lambda _, x: x + x), tokens()).graph.nodes))
    assert optable.name(placeholder) == ""
    assert not optable.works(placeholder)
    assert not optable.is_inplace(placeholder)


INPLACE = [
    pytest.param(lambda _, x: x.clone().add_(x), id="x.clone().add_(x)"),
    pytest.param(lambda _, x: operator.imul(x.clone(), 2), id="operator.imul(x.clone(), 2)"),  # type: ignore[no-untyped-call]
    pytest.param(lambda _, x: torch.ops.aten.add_.Tensor(x.clone(), x), id="aten.add_.Tensor(x.clone(), x)"),
    pytest.param(lambda _, x: F.relu(x.clone(), inplace=True), id="relu(x.clone(), inplace=True)"),
    pytest.param(lambda _, x: F.dropout(x.clone(), 0.5, True, True), id="dropout(x.clone(), 0.5, True, True)"),
    pytest.param(lambda _, x: F.elu(x.clone(), 1.0, True), id="elu(x.clone(), 1.0, True)"),
    pytest.param(lambda _, x: F.hardtanh(x.clone(), -1.0, 1.0, True), id="hardtanh(x.clone(), -1.0, 1.0, True)"),
]
NOT_INPLACE = [
    pytest.param(lambda _, x: x + x, id="x + x"),
    pytest.param(lambda _, x: F.relu(x), id="relu(x)"),
    pytest.param(lambda _, x: F.relu(x, inplace=False), id="relu(x, inplace=False)"),
    pytest.param(lambda _, x: F.dropout(x, 0.5, True, False), id="dropout(x, 0.5, True, False)"),
    pytest.param(lambda _, x: torch.ops.aten.add.Tensor(x, x), id="aten.add.Tensor(x, x)"),
    pytest.param(lambda _, x: x.__add__(x), id="x.__add__(x)"),
]


@pytest.mark.parametrize("step", INPLACE)
def test_in_place(step: Step) -> None:
    assert optable.is_inplace(last(step))


@pytest.mark.parametrize("step", NOT_INPLACE)
def test_not_in_place(step: Step) -> None:
    assert not optable.is_inplace(last(step))


def test_positions_of_inplace_are_those_of_torch() -> None:
    import inspect

    for op, position in optable.INPLACE_AT.items():
        assert list(inspect.signature(getattr(F, op)).parameters).index("inplace") == position


@pytest.mark.parametrize(
    ("step", "works"),
    [
        pytest.param(lambda s, x: s.proj(x), True, id="proj(x)"),
        pytest.param(lambda s, x: x @ s.proj.weight, True, id="x @ proj.weight"),
        pytest.param(
            lambda s, x: torch.einsum("btc,cd->btd", x, s.proj.weight), True, id="einsum('btc,cd->btd', x, proj.weight)"
        ),
        pytest.param(lambda _, x: x.softmax(-1), True, id="x.softmax(-1)"),
        pytest.param(
            lambda _, x: F.scaled_dot_product_attention(x, x, x), True, id="scaled_dot_product_attention(x, x, x)"
        ),
        pytest.param(lambda _, x: torch.fft.fft(x).real.cumsum(1), True, id="fft.fft(x).real.cumsum(1)"),
        pytest.param(lambda s, x: s.norm(x), False, id="norm(x)"),
        pytest.param(lambda _, x: x.mean(1, keepdim=True), False, id="x.mean(1, keepdim=True)"),
        pytest.param(lambda _, x: x.transpose(1, 2).reshape(2, -1), False, id="x.transpose(1, 2).reshape(2, -1)"),
        pytest.param(lambda s, x: s.drop(x), False, id="drop(x)"),
        pytest.param(lambda _, x: F.gelu(x), False, id="gelu(x)"),
    ],
)
def test_real_work(step: Step, works: bool) -> None:
    assert optable.works(last(step)) is works


@pytest.mark.parametrize(
    ("step", "add"),
    [
        pytest.param(lambda _, x: x + x.sin(), True, id="x + x.sin()"),
        pytest.param(lambda _, x: torch.add(x, x.sin(), alpha=1), True, id="add(x, x.sin(), alpha=1)"),
        pytest.param(lambda _, x: torch.add(x, x.sin(), alpha=2), False, id="add(x, x.sin(), alpha=2)"),
        pytest.param(lambda _, x: x + 1.0, False, id="x + 1.0"),
        pytest.param(lambda _, x: 1.0 + x, False, id="1.0 + x"),
        pytest.param(lambda _, x: x + x[:1], False, id="x + x[:1]"),
        pytest.param(lambda _, x: x.long() + x.long(), False, id="x.long() + x.long()"),
        pytest.param(lambda _, x: x - x.sin(), False, id="x - x.sin()"),
        pytest.param(lambda _, x: x[0, 0] + x[1, 1], False, id="x[0, 0] + x[1, 1]"),
    ],
)
def test_adds_of_two_tensors(step: Step, add: bool) -> None:
    assert optable.is_add(last(step)) is add


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(lambda _, x: torch.zeros_like(x), id="zeros_like(x)"),
        pytest.param(lambda _, x: x.new_ones(3), id="x.new_ones(3)"),
        pytest.param(lambda _, x: torch.randn_like(x), id="randn_like(x)"),
    ],
)
def test_ops_that_look_at_the_shape_only(step: Step) -> None:
    assert optable.sources(last(step)) == []


def test_sources_are_the_inputs_by_value() -> None:
    assert [n.op for n in optable.sources(last(lambda s, x: s.gamma.expand_as(x)))] == ["placeholder"]
    assert len(optable.sources(last(lambda s, x: s.gamma * x))) == 2


@pytest.mark.parametrize(
    ("step", "liftable"),
    [
        pytest.param(lambda s, x: s.norm(x), True, id="norm(x)"),
        pytest.param(lambda _, x: F.rms_norm(x, (C,)), True, id="rms_norm(x, (C,))"),
        pytest.param(lambda _, x: F.layer_norm(x, x.shape[1:]), False, id="layer_norm(x, x.shape[1:])"),
        pytest.param(lambda _, x: x.relu(), True, id="x.relu()"),
        pytest.param(lambda _, x: 2 * x, True, id="2 * x"),
        pytest.param(lambda _, x: x.half(), True, id="x.half()"),
        pytest.param(lambda _, x: x.mean(-1, keepdim=True), True, id="x.mean(-1, keepdim=True)"),
        pytest.param(lambda _, x: x.mean(2, True), True, id="x.mean(2, True)"),
        pytest.param(lambda _, x: x.sum(dim=(-1,), keepdim=True), True, id="x.sum(dim=(-1,), keepdim=True)"),
        pytest.param(lambda _, x: x.norm(2, 2, True), True, id="x.norm(2, 2, True)"),
        pytest.param(
            lambda _, x: torch.linalg.vector_norm(x, dim=-1, keepdim=True),
            True,
            id="linalg.vector_norm(x, dim=-1, keepdim=True)",
        ),
        pytest.param(lambda _, x: x.norm(2, dim=1, keepdim=True), False, id="x.norm(2, dim=1, keepdim=True)"),
        pytest.param(lambda _, x: x.mean(-1), False, id="x.mean(-1)"),
        pytest.param(lambda _, x: x.mean(1, keepdim=True), False, id="x.mean(1, keepdim=True)"),
        pytest.param(lambda _, x: x.mean(), False, id="x.mean()"),
        pytest.param(lambda _, x: x.clone().relu_(), False, id="x.clone().relu_()"),
        pytest.param(lambda s, x: s.drop(x), False, id="drop(x)"),
        pytest.param(lambda s, x: s.proj(x), False, id="proj(x)"),
        pytest.param(lambda _, x: x.flip(1), False, id="x.flip(1)"),
        pytest.param(
            lambda _, x: F.batch_norm(x, None, None, training=True),
            False,
            id="batch_norm(x, None, None, training=True)",
        ),
    ],
)
def test_liftable(step: Step, liftable: bool) -> None:
    assert optable.is_liftable(last(step), 3) is liftable


def test_argument() -> None:
    node: Any = last(lambda _, x: x.mean(1, keepdim=True))
    assert optable.argument(node, 1, "dim") == 1
    assert optable.argument(node, 2, "keepdim", False) is True
    assert optable.argument(node, 3, "dtype", "none") == "none"
