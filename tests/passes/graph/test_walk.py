"""Short walks through a graph."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx

from mhc_compile.passes.graph import walk
from mhc_compile.passes.graph.facts import GraphFacts
from tests.nets.structures import Layer, graph, tokens


def diamond() -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """`x -> a -> b, c -> d`, and `e` aside."""
    made = fx.Graph()
    x, e = made.placeholder("x"), made.placeholder("e")
    a = made.call_function(torch.sin, (x,), name="a")
    b, c = made.call_function(torch.exp, (a,), name="b"), made.call_function(torch.cos, (a,), name="c")
    d = made.call_function(operator.add, (b, c), name="d")
    made.output((d, e))
    gm = fx.GraphModule(torch.nn.Module(), made)
    return gm, {node.name: node for node in gm.graph.nodes}


@pytest.mark.parametrize(
    ("root", "ends", "found"),
    [("a", "d", "bcd"), ("x", "d", "abcd"), ("b", "d", "cd"), ("a", "bc", "bc"), ("d", "a", ""), ("a", "e", "")],
)
def test_between(root: str, ends: str, found: str) -> None:
    """Nothing in front of the root in the program, though the end may read it."""
    gm, nodes = diamond()
    inside = walk.between(nodes[root], tuple(nodes[end] for end in ends), GraphFacts(gm).order)
    assert sorted(node.name for node in inside) == list(found)


def test_other_operand() -> None:
    _, nodes = diamond()
    d = nodes["d"]
    assert walk.other(d, nodes["b"]) is nodes["c"]
    assert walk.other(d, nodes["a"]) is None
    d.args = (nodes["b"], 2.0)
    assert walk.other(d, nodes["b"]) == 2.0
    d.args = (nodes["b"], nodes["b"])
    assert walk.other(d, nodes["b"]) is None
    d.args, d.kwargs = (nodes["b"], nodes["c"]), {"alpha": 2}
    assert walk.other(d, nodes["b"]) is None


def test_number() -> None:
    _, nodes = diamond()
    assert (walk.number(2), walk.number(0.5), walk.number(nodes["a"]), walk.number("2")) == (2.0, 0.5, None, None)


def test_source_is_the_innermost_line_of_the_users() -> None:
    gm = graph(Layer(lambda self, x: x + self.mlp(x)), tokens())
    add = [node for node in gm.graph.nodes if node.op == "call_function"][-1]
    assert walk.source_of(add).startswith(f"{__file__}:")
    assert walk.source_of(fx.Graph().placeholder("x")) == ""


def test_values_and_devices_are_those_of_tensors() -> None:
    gm, nodes = diamond()
    nodes["a"].meta["example_value"], nodes["b"].meta["val"] = torch.ones(2), torch.ones(3, device="meta")
    nodes["c"].meta["example_value"] = 3
    assert [walk.value(nodes[name]) is not None for name in "abcd"] == [True, True, False, False]
    assert walk.devices(gm) == {torch.device("cpu"), torch.device("meta")}
