"""Which nodes no data reaches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhc_compile.passes.graph.facts import GraphFacts
from tests.nets.structures import Layer, graph, tokens


def test_static_is_what_parameters_alone_make() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        a = self.gamma.exp()
        b = a * 2
        c = b * x
        return c.exp()

    static = {node.name for node in GraphFacts(graph(Layer(step), tokens())).static}
    assert {"a", "b"} <= static
    assert static.isdisjoint({"c", "exp"})
    assert len(static) == 3  # with gamma itself


def test_constant_is_what_numbers_alone_make() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        a = torch.tensor(0.5)
        b = torch.arange(8.0).cos() * a
        c = torch.zeros_like(x)
        filled = torch.zeros_like(x)
        filled[:, 0] = x[:, 0]
        noise = torch.zeros_like(x).normal_()
        drawn = torch.rand(8)
        return x * a + b + c + filled + noise + drawn + self.gamma

    constant = {node.name for node in GraphFacts(graph(Layer(step), tokens())).constant}
    assert {"a", "b", "c", "arange", "cos"} <= constant
    assert constant.isdisjoint({"filled", "noise", "normal_", "drawn", "l_x_", "mul_1"})
