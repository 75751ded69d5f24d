"""What is computed from what: for each node of a picture, which of the named ones stand above it, and by what way."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mhc_compile.passes.find_residuals.ancestry import Ancestry
from mhc_compile.passes.graph.fixed import static_nodes
from tests.nets.structures import Layer, Step, graph, tokens

Names = set[str]


def swept(step: Step, *interesting: str) -> dict[str, tuple[Names, Names, Names]]:
    """For every variable of the function: its ancestors, those with work between, those with a layer between."""
    gm = graph(Layer(step), tokens())
    nodes = list(gm.graph.nodes)
    ancestry = Ancestry([node for node in nodes if node.name in interesting], static_nodes(nodes))
    for node in nodes:
        ancestry.sweep(node)

    def named(bits: int) -> Names:
        return {node.name for node, bit in ancestry.bit.items() if bits & bit}

    sets = ancestry.above, ancestry.worked, ancestry.deep
    return {node.name: tuple(named(each[node]) for each in sets) for node in nodes}  # type: ignore[misc]  # three


def mlp(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    b = a.exp()
    c = b @ self.proj.weight
    d = c.tanh()
    e = d @ self.attn.q.weight
    return e + a


def test_work_and_layers_between() -> None:
    """A tanh alone is no work, a product alone is no layer, but product, tanh, product are."""
    found = swept(mlp, "a", "b", "c")
    assert found["b"] == ({"a"}, set(), set())
    assert found["c"] == ({"a", "b"}, {"a", "b"}, set())
    assert found["d"] == ({"a", "b", "c"}, {"a", "b"}, set())
    assert found["e"] == ({"a", "b", "c"}, {"a", "b", "c"}, {"a", "b"})


def discrete(self: Any, x: Tensor) -> Tensor:
    a = x.sin()
    b = a.argmax(-1, keepdim=True)
    c = b.float() @ self.proj.weight[:1]
    return c + x


def test_integers_cut_the_way() -> None:
    found = swept(discrete, "a")
    assert found["c"] == (set(), set(), set())


def masked(self: Any, x: Tensor) -> Tensor:
    mask = x.cos()
    a = x.sin()
    f = (a + mask) @ self.proj.weight
    total = a + f
    return total.exp()


def test_a_sum_descends_from_its_carrier_and_branches_but_not_from_what_they_read() -> None:
    gm = graph(Layer(masked), tokens())
    nodes = list(gm.graph.nodes)
    by_name = {node.name: node for node in nodes}
    mask, a, f, total = (by_name[name] for name in ("mask", "a", "f", "total"))
    ancestry = Ancestry([mask, a, f], static_nodes(nodes))
    for node in nodes:
        ancestry.sweep(node)
    assert ancestry.above[total] == ancestry.bits([mask, a, f])
    assert ancestry.worked[total] == ancestry.bits([mask, a])
    ancestry.carry_on(total, a, [f])
    assert ancestry.above[total] == ancestry.bits([a, f])
    assert ancestry.worked[total] == 0
