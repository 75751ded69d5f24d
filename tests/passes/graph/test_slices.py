"""Which nodes hold a part of a tensor, and which part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhc_compile.passes.graph.facts import GraphFacts
from tests.nets.structures import Layer, graph, tokens


def step(self: Any, x: Tensor) -> Tensor:
    y = x.sin()
    a, b = y[:, 0], y.transpose(0, 1)[1]
    c, d, *_ = y.cos().unbind(1)
    e, f = y.exp().chunk(2, -1)
    alone = y.tanh()[:, 0]
    same, again = y.relu()[:, 0], y.relu()[:, 0]
    weight, other = self.proj.weight[0], self.proj.weight[1]
    return torch.stack([v.sum() for v in (a, b, c, d, e, f, alone, same, again, weight, other)])


def test_slices() -> None:
    """Parts of a tensor that data made, where there are several; a step has an axis less."""
    found = {node.name: part for node, part in GraphFacts(graph(Layer(step), tokens())).slices.items()}
    assert found["a"].whole is found["b"].whole
    assert found["a"].which != found["b"].which
    assert found["c"].whole is found["d"].whole
    assert found.keys() >= {"a", "b", "c", "d", "e", "f"}
    assert found.keys().isdisjoint({"alone", "same", "again", "weight", "other"})
    assert [found[name].is_step for name in "abcdef"] == [True, True, True, True, False, False]


def test_inputs_in_a_list_are_steps() -> None:
    def sums(self: Any, xs: list[Tensor]) -> Tensor:
        return xs[0].sin() + xs[1]

    found = GraphFacts(graph(Layer(sums), [tokens(), tokens()])).slices
    assert [(part.whole, part.which, part.is_step) for part in found.values()] == [
        ("L_args_0", "0", True),
        ("L_args_0", "1", True),
    ]
