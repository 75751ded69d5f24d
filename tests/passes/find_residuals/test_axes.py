"""Where the axes of a view come from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mhc_compile.passes.find_residuals import axes
from tests.nets.structures import Layer, graph

A, B, D = frozenset((0,)), frozenset((1,)), frozenset((2,))
SHAPE = (2, 6, 8)

VIEWS = [
    pytest.param(lambda x: x.transpose(1, 2), (A, D, B), id="x.transpose(1, 2)"),
    pytest.param(lambda x: x.permute(2, 0, 1), (D, A, B), id="x.permute(2, 0, 1)"),
    pytest.param(lambda x: x.movedim(-1, 0), (D, A, B), id="x.movedim(-1, 0)"),
    pytest.param(lambda x: x.view(2, 6, 2, 4), (A, B, D, D), id="x.view(2, 6, 2, 4)"),
    pytest.param(lambda x: x.view(2, 2, 3, 8), (A, B, B, D), id="x.view(2, 2, 3, 8)"),
    pytest.param(lambda x: x.reshape(12, 8), (A | B, D), id="x.reshape(12, 8)"),
    pytest.param(lambda x: x.flatten(1), (A, B | D), id="x.flatten(1)"),
    pytest.param(lambda x: x.reshape(3, 4, 8), (A | B, A | B, D), id="x.reshape(3, 4, 8)"),
    pytest.param(lambda x: x.unsqueeze(1), (A, frozenset(), B, D), id="x.unsqueeze(1)"),
    pytest.param(lambda x: x.unflatten(2, (4, 2)), (A, B, D, D), id="x.unflatten(2, (4, 2))"),
    pytest.param(lambda x: x[:, :3], (A, B, D), id="x[:, :3]"),
    pytest.param(lambda x: x.relu(), (A, B, D), id="x.relu()"),
    pytest.param(lambda x: x.mean(1), None, id="x.mean(1)"),
]


@pytest.mark.parametrize(("view", "expected"), VIEWS)
def test_follow(view: Callable[[Tensor], Tensor], expected: axes.Axes | None) -> None:
    gm = graph(Layer(lambda self, x: view(x)), torch.randn(SHAPE))
    source = gm.graph.find_nodes(op="placeholder")[0]
    (node,) = source.users
    assert axes.follow(node, source, axes.identity(3)) == expected


def grouped(factors: list[int], cuts: set[int]) -> list[int]:
    """Join neighbouring factors, except where they are cut."""
    sizes = [1]
    for i, factor in enumerate(factors):
        if i in cuts:
            sizes.append(1)
        sizes[-1] *= factor
    return sizes


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.sets(st.integers(1, 4)), st.sets(st.integers(1, 4)))
def test_a_step_along_an_axis_moves_only_where_it_comes_from(factors: list[int], a: set[int], b: set[int]) -> None:
    before, after = grouped(factors, a), grouped(factors, b)
    made = axes._merged(before, after, axes.identity(len(before)))
    assert made is not None
    places = torch.unravel_index(torch.arange(int(torch.tensor(before).prod())), tuple(before))
    for j, size in enumerate(after):
        for i, place in enumerate(places):
            here = place.view(after)
            moves = bool((here.narrow(j, 1, size - 1) != here.narrow(j, 0, size - 1)).any())
            assert i in made[j] or not moves
