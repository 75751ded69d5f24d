"""Trees of adds, laid out once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from mhc_compile.passes import ANALYSIS, Plan
from mhc_compile.passes.find_residuals.trees import Trees
from mhc_compile.passes.graph.walk import operands
from mhc_compile.passes.runner import run
from tests.nets.structures import Layer, graph, request, tokens

Shape = Any  # a number, or a pair of shapes
shapes = st.recursive(st.integers(0, 6), lambda inner: st.tuples(inner, inner), max_leaves=12)


def built(shape: Shape, graph: fx.Graph, terms: list[fx.Node]) -> fx.Node:
    if isinstance(shape, int):
        return terms[shape]
    return graph.call_function(torch.add, (built(shape[0], graph, terms), built(shape[1], graph, terms)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.tuples(shapes, shapes), st.integers(0, 6), st.sets(st.integers(0, 6)))
def test_carrier(shape: Shape, start: int, related: set[int]) -> None:
    """Of every add: the first term, if all others of its tree are made from it."""
    plain = fx.Graph()
    terms = [plain.placeholder(f"t{i}") for i in range(7)]
    root = built(shape, plain, terms)
    place = {term: (i - start) % 7 for i, term in enumerate(terms)}
    adds = [node for node in plain.nodes if node.op == "call_function"]
    trees = Trees(set(adds) - {root}, place.__getitem__)

    def flat(node: fx.Node) -> list[fx.Node]:
        return [leaf for arg in operands(node) for leaf in flat(arg)] if node in adds else [node]

    def made_from(carrier: fx.Node) -> Callable[[fx.Node], bool]:
        return lambda term: terms.index(term) in related and place[term] > place[carrier]

    for add in reversed(adds):
        tree = trees.sum(add)
        assert list(tree.terms) == flat(add)
        assert len(tree.adds) == len(tree.terms) - 1
        others = {term: [o for o in tree.terms if o is not term] for term in tree.terms}
        wanted = [term for term, rest in others.items() if rest and all(map(made_from(term), rest))]
        assert trees.carrier(add, made_from) is (wanted[0] if wanted else None)


def mixture(self: Any, x: Tensor) -> Tensor:
    """Experts with a weight each, as dense mixtures sum them."""
    weights, total = self.up(self.down(x)).softmax(-1), 0
    for i in range(500):
        total = total + weights[..., i % 8, None] * torch.tanh(self.proj(x))
    return x + total


def branches(self: Any, x: Tensor) -> Tensor:
    total, y = x, self.proj(x)
    for _ in range(500):
        total = total + torch.tanh(y)
    return total


def branches_first(self: Any, x: Tensor) -> Tensor:
    total = torch.tanh(self.proj(x))
    for _ in range(500):
        total = self.proj(x).sigmoid() + total
    return total


@pytest.mark.parametrize(
    ("step", "adds", "reasons"),
    [
        pytest.param(mixture, [1], {"branch-sum": 499}, marks=pytest.mark.slow),
        (branches, [500], {}),
        pytest.param(branches_first, [], {"no-skip": 500, "single-site-region": 0}, marks=pytest.mark.slow),
    ],
    ids=["mixture", "branches", "branches first"],
)
def test_sums_of_many_terms(step: Any, adds: list[int], reasons: dict[str, int]) -> None:
    """In near-linear time, without recursion."""
    gm = graph(Layer(step), tokens())
    results = run(ANALYSIS, gm, request())
    plan = results[Plan]
    assert [len(site.residual.adds) for site in plan.sites] == adds
    assert Counter(rejection.reason for rejection in plan.rejections) == +Counter(reasons)
    assert sum(each.seconds for each in results.times) < 10
