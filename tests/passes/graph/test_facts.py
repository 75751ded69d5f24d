"""Facts are those of the graph as it was when they were first asked for."""

from __future__ import annotations

from mhc_compile.passes.graph.facts import GraphFacts
from tests.nets.structures import Layer, graph, tokens


def test_facts() -> None:
    gm = graph(Layer(lambda _, x: x.sin().mul_(2).exp()), tokens())
    facts = GraphFacts(gm)
    assert [node.name for node in facts.nodes] == [node.name for node in gm.graph.nodes]
    assert [facts.order[node] for node in facts.nodes] == list(range(len(facts.nodes)))
    assert {node.name for node in facts.overwritten} == {"sin", "mul_"}


def test_they_are_found_once() -> None:
    """So a pass that rewrites needs new ones."""
    gm = graph(Layer(lambda _, x: x.sin().exp()), tokens())
    facts = GraphFacts(gm)
    before = facts.nodes
    with gm.graph.inserting_before(before[-1]):
        gm.graph.call_method("cos", (before[0],))
    assert facts.nodes is before
    assert len(GraphFacts(gm).nodes) == len(before) + 1
