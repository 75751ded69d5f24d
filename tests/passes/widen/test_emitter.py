"""Where new nodes come to stand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhc_compile.passes import ANALYSIS, Plan
from mhc_compile.passes.runner import run
from mhc_compile.passes.widen.emitter import Emitter
from tests.nets.structures import Layer, graph, request, tokens


def step(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(x).sin()
    return x + self.proj(x).cos()


def test_behind_the_same_node_in_order() -> None:
    gm = graph(Layer(step), tokens())
    emitter = Emitter(gm.graph, run(ANALYSIS, gm, request())[Plan].sites[0])
    nodes = {node.name: node for node in gm.graph.nodes}
    inputs = gm.graph.find_nodes(op="placeholder")
    sin, cos = nodes["sin"], nodes["cos"]
    a, b = emitter.method(sin, "exp", sin), emitter.op(sin, torch.neg, sin)
    emitter.move(cos, sin)
    c, d = emitter.method(inputs[0], "exp", inputs[0]), emitter.input("more")
    e = emitter.method(inputs[-1], "exp", inputs[-1])
    order = list(gm.graph.nodes)
    assert order[order.index(sin) :][:4] == [sin, a, b, cos]
    assert order[order.index(inputs[-1]) :][:4] == [inputs[-1], d, c, e]
    assert [emitter.is_behind(node, sin) for node in (a, b, cos, c)] == [True, True, True, False]
    assert emitter.is_behind(c, inputs[-1])
    assert a.meta["example_value"].shape == tokens().shape
    assert a.meta["mhc_site"] == "proj"
