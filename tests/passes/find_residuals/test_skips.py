"""What a term may pass on: each step of the way back, by the names of variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from torch import Tensor, fx

from mhc_compile.passes.find_residuals.skips import Skips
from mhc_compile.passes.graph.fixed import static_nodes
from tests.nets.structures import C, Layer, Step, graph, tokens


def walked(step: Step, walk: Callable[[Skips, fx.Node], Iterable[fx.Node]], of: str = "end") -> list[str]:
    """Names of the variables on a walk that starts at the variable `end`."""
    gm = graph(Layer(step), tokens())
    nodes = list(gm.graph.nodes)
    (start,) = [node for node in nodes if node.name == of]
    return [node.name for node in walk(Skips(static_nodes(nodes)), start)]


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


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (scaled, ["end", "c", "b", "a"]),
        (shifted, ["end", "a"]),
        (moved, ["end"]),
        (gated, ["end"]),
        (by_a_table, ["end"]),
    ],
    ids=["scaled", "shifted", "moved", "gated", "by a table"],
)
def test_peel(step: Step, found: list[str]) -> None:
    """Casts, multiples, and shifts by a parameter of one number a feature at most."""
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


def test_static_is_what_parameters_alone_make() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        a = self.gamma.exp()
        b = a * 2
        c = b * x
        return c.exp()

    gm = graph(Layer(step), tokens())
    static = {node.name for node in static_nodes(gm.graph.nodes)}
    assert {"a", "b"} <= static
    assert static.isdisjoint({"c", "exp"})
    assert len(static) == 3  # with gamma itself
