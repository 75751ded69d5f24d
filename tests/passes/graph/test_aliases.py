"""Which nodes share memory, and which are overwritten: a function, and the names of its nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from mhc_compile.passes.graph.aliases import overwritten, same_storage
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


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (in_place, {"sin", "half", "mul_"}),
        (out, {"sin", "add"}),
        (new, set()),
        (of_a_result, {"exp", "mul_"}),
    ],
    ids=["in place", "out", "new", "of a result"],
)
def test_overwritten(step: Step, found: set[str]) -> None:
    """What the change is made to, and all that shares its memory."""
    gm, _ = made(step)
    names = {node.name for node in overwritten(gm)}
    assert {name.rstrip("_") for name in names} == {name.rstrip("_") for name in found}
