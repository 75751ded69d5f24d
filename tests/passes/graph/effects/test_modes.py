"""In which mode a node runs."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from mhc_compile.passes.graph.effects.modes import Modes
from tests.nets.structures import graph, tokens


class Switching(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a = x.sin()
        with torch.no_grad():
            b = x.cos()
        with torch.autocast("cpu", torch.bfloat16):
            c = x.exp()
            with torch.autocast("cpu", enabled=False):
                d = x.tan()
        e = x.abs()
        torch._assert(x.shape[0] == 2, "no mode")
        with torch.autograd.graph.disable_saved_tensors_hooks("no"):
            f = x.neg()
        return a, b, c, d, e, f


def test_modes_are_told_apart() -> None:
    gm = graph(Switching(), tokens())
    modes = Modes(tuple(gm.graph.nodes))
    returned = gm.graph.find_nodes(op="output")[0].all_input_nodes
    x, (a, b, c, d, e, f) = gm.graph.find_nodes(op="placeholder")[0], returned
    assert [other for other in returned if modes.same(a, other)] == [a, e]
    assert [other for other in returned if modes.same_gradients(a, other)] == [a, c, d, e, f]
    assert modes.same(a, x)
    assert not any(modes.same(*pair) for pair in [(b, c), (c, d), (e, f)])
    assert [len(modes.autocast(node)) for node in returned] == [0, 0, 1, 2, 0, 0]
    assert [modes.with_gradients(node) for node in (a, b, c)] == [True, False, True]


def test_a_new_node_has_the_modes_of_its_neighbour() -> None:
    gm = graph(Switching(), tokens())
    modes = Modes(tuple(gm.graph.nodes))
    (a, b, *_) = gm.graph.find_nodes(op="output")[0].all_input_nodes
    new: fx.Node = gm.graph.call_method("sin", (b,))
    modes.place_beside(new, b)
    assert modes.same(new, b)
    assert not modes.same_gradients(new, a)
