"""What may stand elsewhere in a program."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._C import _set_grad_enabled  # what Dynamo makes of no_grad

from mhc_compile.passes.graph.effects.order import Order
from mhc_compile.passes.graph.facts import GraphFacts


def module(graph: fx.Graph) -> fx.GraphModule:
    root = nn.Module()
    root.register_buffer("held", torch.ones(3))
    return fx.GraphModule(root, graph)


def late(make: Any) -> tuple[Order, fx.Node, fx.Node]:
    """A node `at`, and an operand that is made behind it from a parameter w and the node."""
    graph = fx.Graph()
    w = graph.placeholder("w")
    at = graph.call_function(torch.sin, (w,))
    operand = make(graph, w, at)
    graph.output((at, operand))
    return Order(GraphFacts(module(graph))), at, operand


@pytest.mark.parametrize(
    ("make", "moved"),
    [
        pytest.param(lambda g, w, at: w, [], id="w"),
        pytest.param(lambda g, w, at: g.get_attr("held"), ["held"], id="held"),
        pytest.param(
            lambda g, w, at: g.call_function(operator.add, (1.0, g.call_method("float", (w,)))),
            ["float_1", "add"],
            id="1.0 + w.float()",
        ),
        pytest.param(
            lambda g, w, at: g.call_method("reshape", (g.get_attr("held"), (3,))),
            ["held", "reshape"],
            id="held.reshape(3)",
        ),
    ],
)
def test_what_parameters_alone_make_moves(make: Any, moved: list[str]) -> None:
    places, at, operand = late(make)
    found = places.needed([operand], at)
    assert found is not None
    assert [node.name for node in found] == moved


@pytest.mark.parametrize(
    "make",
    [
        lambda g, w, at: at,
        lambda g, w, at: g.call_function(operator.add, (1.0, at)),
        lambda g, w, at: g.call_function(torch.rand_like, (w,)),
        lambda g, w, at: g.call_function(torch.matmul, (w, w)),
        lambda g, w, at: g.call_method("neg", (g.call_method("mul_", (w, 2)),)),
    ],
    ids=["itself", "of itself", "random", "work", "overwritten"],
)
def test_what_cannot_move(make: Any) -> None:
    places, at, operand = late(make)
    assert places.needed([operand], at) is None


def test_what_is_overwritten_later_is_read_where_it_is() -> None:
    places, at, _ = late(lambda g, w, at: g.call_method("mul_", (w, 2)))
    assert places.needed(at.all_input_nodes, at) is None


@pytest.mark.parametrize(("again", "moves"), [(False, True), (True, False)], ids=["settled", "changed again"])
def test_what_was_overwritten_before_can_be_read_earlier(again: bool, moves: bool) -> None:
    """An operand behind the branch reads what an in-place op made; where another follows, it reads that."""
    graph = fx.Graph()
    w = graph.placeholder("w")
    at = graph.call_method("mul_", (w, 2))
    branch = graph.call_function(torch.sin, (at,))
    other = graph.call_method("add_", (w, 1)) if again else w
    operand = graph.call_method("neg", (at,))
    graph.output((branch, other, operand))
    places = Order(GraphFacts(module(graph)))
    assert places.late([operand], at) == ([operand] if moves else None)
    assert places.late([operand], at, but={at}) is None  # in front of the change it is another


def test_nodes_fit_in_one_gradient_mode_and_checkpoint() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")

    def sin() -> fx.Node:
        return graph.call_function(torch.sin, (x,))

    def switch(on: bool) -> None:
        graph.call_function(_set_grad_enabled, (on,))

    a = sin()
    switch(False)
    b = sin()
    switch(True)
    c, d = sin(), sin()
    d.meta["ac_graph_id"] = 0
    graph.output((a, b, c, d))
    places = Order(GraphFacts(module(graph)))
    assert places.can_merge(a, c)
    assert not places.can_merge(a, b)
    assert not places.can_merge(a, d)
    assert places.same_mode(a, d)
    assert places.needed([b], a) is None
    assert places.needed([c], a) == [c]


def test_a_new_node_takes_a_place() -> None:
    places, at, operand = late(lambda g, w, at: g.call_method("neg", (w,)))
    with at.graph.inserting_before(at):
        new = at.graph.call_method("neg", (at.args[0],))
    places.place_beside(new, at)
    assert places.sort([operand, new]) == [new, operand]
    assert places.needed([new], at) == []
