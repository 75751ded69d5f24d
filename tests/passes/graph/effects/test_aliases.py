"""Which nodes share memory, and which are overwritten: a function, and the names of its nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.utils.checkpoint import checkpoint

from mhc_compile.passes.graph.effects.aliases import last_changes, same_storage, shares_with
from mhc_compile.passes.graph.facts import GraphFacts
from tests.nets.structures import Layer, Step, graph, tokens


def made(step: Step) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    gm = graph(Layer(step), tokens())
    return gm, {node.name: node for node in gm.graph.nodes}


def views(_: Any, x: Tensor) -> Tensor:
    sin = x.sin()
    half = sin[:, :2]
    turned = half.transpose(0, 1)
    exp = turned.exp()
    return exp + sin.cos()[:2, :1]


def test_views_share_and_results_do_not() -> None:
    """Whichever of them is asked."""
    _, nodes = made(views)
    for name in ("sin", "half", "turned"):
        assert {node.name for node in same_storage(nodes[name])} == {"sin", "half", "turned"}
    assert {node.name for node in same_storage(nodes["exp"])} == {"exp"}


def test_a_node_left_out_joins_nothing() -> None:
    _, nodes = made(views)
    assert {node.name for node in same_storage(nodes["turned"], but=[nodes["half"]])} == {"turned"}


class Handed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


SHARING: dict[str, Any] = {
    "T": lambda y: y[0].T,
    "mT": lambda y: y.mT,
    "data": lambda y: y.data,
    "real": lambda y: y.real,
    "detach": lambda y: y.detach(),
    "ravel": lambda y: y.ravel(),
    "unfold": lambda y: y.unfold(1, 2, 1),
    "narrow": lambda y: y.narrow(1, 0, 2),
    "diagonal": lambda y: torch.diagonal(y),
    "swapdims": lambda y: y.swapdims(0, 1),
    "by keyword": lambda y: torch.transpose(input=y, dim0=0, dim1=1),
    "split": lambda y: y.tensor_split(2, -1)[0],
    "einsum": lambda y: torch.einsum("btc->cbt", y),
    "dropout in eval": lambda y: torch.nn.functional.dropout(y, 0.5, False),
    "the same dtype": lambda y: y.float(),
    "type_as": lambda y: y.type_as(y),
    "positive": lambda y: +y,
    "contiguous": lambda y: y.contiguous(),
    "aten": lambda y: torch.ops.aten.slice.Tensor(y, 1, 0, 2),
    "checkpoint": lambda y: checkpoint(lambda z: z.view(-1), y, use_reentrant=False),
    "autograd.Function": lambda y: Handed.apply(y),  # type: ignore[no-untyped-call]  # torch leaves it so
}
OWN: dict[str, Any] = {
    "clone": lambda y: y.clone(),
    "cat": lambda y: torch.cat([y, y]),
    "another dtype": lambda y: y.double(),
    "flip": lambda y: y.flip(0),
    "dropout": lambda y: torch.nn.functional.dropout(y, 0.5, True),
    "einsum": lambda y: torch.einsum("btc,bsc->bts", y, y),
    "checkpoint": lambda y: checkpoint(lambda z: z * 2, y, use_reentrant=False),
}


@pytest.mark.parametrize(
    ("view", "shared"),
    [pytest.param(view, True, id=name) for name, view in SHARING.items()]
    + [pytest.param(view, False, id=f"{name}: own") for name, view in OWN.items()],
)
def test_however_a_view_is_spelt(view: Any, shared: bool) -> None:
    _, nodes = made(lambda _, x: view(x.sin()))
    returned = nodes["output"].all_input_nodes[0]
    assert (nodes["sin"] in same_storage(returned)) == shared


def test_of_a_call_that_nobody_knows_everything_may_be_a_view() -> None:
    g = fx.Graph()
    x, y = g.placeholder("x"), g.placeholder("y")
    unknown, known = g.call_function(made, (x, y)), g.call_function(torch.add, (x, y))
    assert shares_with(unknown) == {x, y}
    assert shares_with(known) == set()


def in_place(_: Any, x: Tensor) -> Tensor:
    sin = x.sin()
    half = sin[:, :2]
    half.mul_(2)
    return sin.exp()


def out(_: Any, x: Tensor) -> Tensor:
    sin, cos = x.sin(), x.cos()
    torch.add(sin, cos, out=sin)
    return sin.exp()


def new(_: Any, x: Tensor) -> Tensor:
    return x.sin().mul(2).exp()


def of_a_result(_: Any, x: Tensor) -> Tensor:
    sin = x.sin()
    exp = sin.exp()
    exp.mul_(2)
    return sin + exp


def statistics(_: Any, x: Tensor) -> Tensor:
    sin, mean = x.sin(), x.exp()[0, 0]
    return torch.nn.functional.batch_norm(sin.mT, mean, mean.cos(), training=True).neg()


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (statistics, {"exp", "mean", "cos"}),
        (in_place, {"sin", "half", "mul_"}),
        (out, {"sin", "add"}),
        (new, set()),
        (of_a_result, {"exp", "mul_"}),
    ],
    ids=["statistics", "in place", "out", "new", "of a result"],
)
def test_overwritten(step: Step, found: set[str]) -> None:
    """What the change is made to, and all that shares its memory."""
    gm, _ = made(step)
    names = {node.name for node in GraphFacts(gm).overwritten}
    assert {name.rstrip("_") for name in names} == {name.rstrip("_") for name in found}


def twice(_: Any, x: Tensor) -> Tensor:
    sin = x.sin()
    return sin.mul_(2).add_(1).exp()


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (in_place, {"mul"}),
        (out, {"add"}),
        (twice, {"add"}),
        (new, set()),
        (of_a_result, {"mul"}),
        (statistics, {"batch_norm"}),
    ],
    ids=["in place", "out", "twice", "new", "of a result", "statistics"],
)
def test_last_changes(step: Step, found: set[str]) -> None:
    """Of several changes of the same memory the last; what is changed is what is overwritten."""
    gm, _ = made(step)
    last = last_changes(gm)
    assert {node.name.rstrip("_") for node in last.values()} == found
    assert last.keys() == GraphFacts(gm).overwritten
