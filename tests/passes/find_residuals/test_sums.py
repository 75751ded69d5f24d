"""Trees of adds, and which of their terms is carried on."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, fx

from mhc_compile.passes.find_residuals.sums import Match, Sums
from mhc_compile.passes.graph.facts import GraphFacts
from tests.nets.structures import Layer, Step, graph, tokens


def swept(step: Step) -> tuple[Sums, dict[str, fx.Node]]:
    """The sums of a graph, and its nodes by the names of variables."""
    facts = GraphFacts(graph(Layer(step), tokens()))
    sums = Sums(facts)
    for node in facts.nodes:
        sums.ancestry.sweep(node)
    return sums, {node.name: node for node in facts.nodes}


def told(found: Match | None) -> tuple[str, str, list[str], str] | None:
    """Carrier, what branches read, branches, reason."""
    if found is None:
        return None
    return found.carrier.name, found.reads.name, [branch.name for branch in found.branches], found.reason


def three(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    f, g = self.up(self.down(a).tanh()), self.proj(a)
    inner = a + f
    total = inner + g
    return total.exp()


def read_inside(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    f, g = self.up(self.down(a).tanh()), self.proj(a)
    inner = a + f
    total = inner + g
    return total.exp() * inner


def test_adds_that_only_feed_an_add_are_one_tree() -> None:
    sums, nodes = swept(three)
    tree = sums.trees.sum(nodes["total"])
    assert [node.name for node in tree.adds] == ["total", "inner"]
    assert [node.name for node in tree.terms] == ["a", "f", "g"]
    sums, nodes = swept(read_inside)
    assert [node.name for node in sums.trees.sum(nodes["total"]).terms] == ["inner", "g"]


def doubled(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    f = self.up(self.down(a).tanh())
    inner = a + f
    total = inner + inner
    return total.exp()


def test_an_add_that_is_added_to_itself_is_no_part_of_a_tree() -> None:
    sums, nodes = swept(doubled)
    assert [node.name for node in sums.trees.sum(nodes["total"]).terms] == ["inner", "inner"]


def carried(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    b = 0.5 * a
    f = self.up(self.down(a).tanh())
    total = f + b
    return total.exp()


def neither(self: Any, x: Tensor) -> Tensor:
    f, g = self.up(self.down(x).tanh()), self.up(self.down(x).sigmoid())
    total = f + g
    return total.exp()


def pointwise(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    f = a.tanh()
    total = a + f
    return total.exp()


def shortcut(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    b = self.proj(a)
    f = self.up(self.down(a).tanh())
    total = b + f
    return total.exp()


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (three, ("a", "a", ["f", "g"], "")),
        (carried, ("b", "a", ["f"], "")),
        (neither, None),
        (pointwise, None),
        (shortcut, ("b", "a", ["f"], "projection-shortcut")),
    ],
    ids=["three", "carried", "neither", "pointwise", "shortcut"],
)
def test_match(step: Step, found: tuple[str, str, list[str], str] | None) -> None:
    sums, nodes = swept(step)
    assert told(sums.match(nodes["total"])) == found


def backcast(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    f = self.up(self.down(a).tanh())
    total = a - f
    return total.exp()


def detrended(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    f = a.cumsum(1)
    total = a - f
    return total.exp()


def turned_round(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    f = self.up(self.down(a).tanh())
    total = f - a
    return total.exp()


@pytest.mark.parametrize(
    ("step", "found"),
    [(backcast, ("a", "a", ["f"], "")), (detrended, None), (turned_round, None)],
    ids=["backcast", "detrended", "turned round"],
)
def test_difference(step: Step, found: tuple[str, str, list[str], str] | None) -> None:
    """`x - f(x)`, where f has weights."""
    sums, nodes = swept(step)
    assert told(sums.difference(nodes["total"])) == found


def strangers(self: Any, x: Tensor) -> Tensor:
    a, b = x.sin(), x.cos()
    total = a + b
    return total.exp()


@pytest.mark.parametrize(("step", "related"), [(pointwise, True), (carried, True), (strangers, False)])
def test_related(step: Step, related: bool) -> None:
    sums, nodes = swept(step)
    assert sums.is_related(nodes["total"]) is related
