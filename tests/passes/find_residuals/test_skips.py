"""What a term may pass on: each step of the way back, by the names of variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from mhc_compile.passes.find_residuals.skips import Skips
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.fixed import static_nodes
from tests.nets.structures import C, Layer, Step, graph, tokens


def walked(step: Step, walk: Callable[[Skips, fx.Node], Iterable[fx.Node]], of: str = "end") -> list[str]:
    """Names of the variables on a walk that starts at the variable `end`."""
    gm = graph(Layer(step), tokens())
    nodes = list(gm.graph.nodes)
    (start,) = [node for node in nodes if node.name == of]
    facts = GraphFacts(gm)
    return [node.name for node in walk(Skips(facts.static, facts.constant), start)]


def scaled(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    b = a * 0.5
    c = b.double()
    end = c * self.gamma
    return end.exp()


def shifted(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    end = a + self.gamma
    return end.exp()


def moved(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    end = a + 1.0
    return end.exp()


def gated(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    end = a * x.cos()
    return end.exp()


def by_a_table(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    end = a * self.proj.weight[:5]
    return end.exp()


def shifted_by_a_table(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    end = a + self.proj.weight[:5]
    return end.exp()


def by_a_constant(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    end = a * torch.tensor(0.7)
    return end.exp()


def copied(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    end = a.clone()
    return end.exp()


def divisor(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    end = self.gamma / a
    return end.exp()


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (scaled, ["end", "c", "b", "a"]),
        (shifted, ["end", "a"]),
        (moved, ["end"]),
        (gated, ["end"]),
        (by_a_table, ["end", "a"]),
        (shifted_by_a_table, ["end"]),
        (by_a_constant, ["end", "a"]),
        (copied, ["end", "a"]),
        (divisor, ["end"]),
    ],
    ids=lambda case: case.__name__ if callable(case) else "",
)
def test_peel(step: Step, found: list[str]) -> None:
    """Casts, copies, multiples, and shifts by a parameter of one number a feature at most."""
    assert walked(step, Skips.peel) == found


def test_a_parameter_on_the_way_is_learned() -> None:
    for step, learned in ((scaled, True), (shifted, True), (moved, False)):
        gm = graph(Layer(step), tokens())
        nodes = {node.name: node for node in gm.graph.nodes}
        assert Skips(static_nodes(gm.graph.nodes)).is_learned(nodes["end"], nodes["a"]) is learned
    gm = graph(Layer(scaled), tokens())
    nodes = {node.name: node for node in gm.graph.nodes}
    assert not Skips(static_nodes(gm.graph.nodes)).is_learned(nodes["c"], nodes["a"])  # gamma stands behind it


def sliced(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    b = a[:, :2]
    end = b.transpose(0, 1)
    return end.exp()


def test_reshaped() -> None:
    assert walked(sliced, Skips.reshaped) == ["b", "a"]
    assert walked(scaled, Skips.reshaped) == []


def projected(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    b = self.proj(a)
    end = self.norm(b)
    return end.exp()


def activated(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    b = self.proj(a).tanh()
    end = self.norm(b)
    return end.exp()


def test_projected() -> None:
    """One learned linear map, perhaps normed."""
    assert walked(projected, Skips.projected) == ["a"]
    assert walked(activated, Skips.projected) == []


def mixture(self: Any, x: Tensor) -> Tensor:
    a = x.unflatten(-1, (2, C // 2))
    b = a @ a.transpose(-1, -2)
    end = b @ a
    return end.exp()


def by_weights(self: Any, x: Tensor) -> Tensor:
    a = x.unflatten(-1, (2, C // 2))
    end = a @ self.proj.weight[:4, :4]
    return end.exp()


def test_mixed() -> None:
    """A product of two tensors that both come from data."""
    assert walked(mixture, Skips.mixed) == ["end", "b", "a"]
    assert walked(by_weights, Skips.mixed) == []


def joined(self: Any, x: Tensor) -> Tensor:
    a, b = x.sin(), x.cos()
    c = b[:, :, :2]
    end = torch.cat([a, c], -1)
    return end.exp()


def test_joined() -> None:
    """The parts of a concatenation, and what they are parts of."""
    assert walked(joined, Skips.joined) == ["a", "c", "b"]
    assert walked(sliced, Skips.joined) == []


def two_layers(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    b = self.down(a)
    end = self.up(b)
    return end.exp()


def concatenated(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    end = torch.cat([self.down(a), self.proj(a)], -1)
    return end.exp()


def test_a_projection_may_have_layers_and_parts() -> None:
    assert walked(two_layers, Skips.projected) == ["b", "a"]
    assert walked(concatenated, Skips.projected) == ["a", "a"]


def test_gates() -> None:
    """A product of two tensors of data: either may be the gate; what the gate leaves is told from what it keeps."""
    gm = graph(Layer(highway), tokens())
    facts, nodes = GraphFacts(gm), {node.name: node for node in gm.graph.nodes}
    skips = Skips(facts.static, facts.constant)
    assert [(kept.name, gate.name) for kept, gate in skips.gated(nodes["end"])] == [("a", "rest"), ("rest", "a")]
    assert skips.ungated(nodes["other"], nodes["rest"]) is nodes["f"]
    assert skips.ungated(nodes["f"], nodes["rest"]) is nodes["f"]


def highway(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    gate = self.proj(a).sigmoid()
    f = self.mlp(a).tanh()
    rest = 1 - gate
    end = a * rest
    other = gate * f
    return end.exp() + other
