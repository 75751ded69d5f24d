"""Where a site's ops stand, and which connections are left alone since they can stand nowhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mhc_compile.errors import PlanMismatchError
from mhc_compile.passes import ANALYSIS, Plan
from mhc_compile.passes.runner import run
from tests.nets.structures import Layer, Step, graph, mark, marked, planned, request, tokens


def place(step: Step) -> tuple[str, list[str]]:
    """Behind which node the last site's ops stand, and what moves there."""
    found = run(ANALYSIS, graph(Layer(step), tokens()), request())[Plan].sites[-1].place
    return found.behind.name, [node.name for node in found.moved]


def with_number(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(x)
    first = x.sin()
    f = self.mlp(first)
    return 0.5 * x + f


def with_parameter(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(x)
    first = x.sin()
    f = self.mlp(first) * torch.rand_like(first)
    return self.gamma.exp() * x + f


def in_no_grad(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(x)
    before = x.sin()
    with torch.no_grad():
        f = self.mlp(x)
    return 0.5 * x + before * self.proj(f)


@pytest.mark.parametrize(
    ("step", "behind", "moved"),
    [(with_number, "x", []), (with_parameter, "x", ["exp"]), (in_no_grad, "x", [])],
    ids=["number", "parameter", "no_grad"],
)
def test_in_front_of_the_branch(step: Step, behind: str, moved: list[str]) -> None:
    assert place(step) == (behind, moved)


def test_a_carrier_made_without_gradients_is_read_with_them() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.norm(x + self.proj(x))
        return x + self.mlp(x)

    assert place(step) == ("_set_grad_enabled_1", [])


def by_a_state(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(x)
    f = self.mlp(x)
    self.state.mul_(0.5)
    return self.state * x + f


def without_gradients(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(x)
    f = self.mlp(x)
    with torch.no_grad():
        scaled = x * 0.5
    return scaled + f


def in_autocast(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(x)
    f = self.mlp(x)
    with torch.autocast("cpu", torch.bfloat16):
        scaled = x * self.gamma.exp()
    return scaled + f


def read_without_gradients(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(x)
    with torch.no_grad():
        y = self.norm(x)
        f = self.mlp(y)
    return y + self.proj(f)


def term_overwritten(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(x)
    f = self.mlp(x)
    total = x + f
    f.zero_()
    return total + self.attn(x)


@pytest.mark.parametrize(
    "step",
    [by_a_state, without_gradients, in_autocast, read_without_gradients, term_overwritten],
    ids=lambda step: step.__name__,
)
def test_left_alone(step: Step) -> None:
    """Each connection whose ops would pass something, or whose terms are gone at its last add; the values stay."""

    def twice(self: Any, x: Tensor) -> Tensor:
        return step(self, step(self, x))

    layer = Layer(twice)
    layer.register_buffer("state", torch.ones(layer.gamma.shape))
    plain = run(ANALYSIS, graph(layer, tokens()), request())[Plan]
    assert [rejection.reason for rejection in plain.rejections if rejection.residual] == ["order"] * 2
    assert len(plain.sites) >= 2


def test_a_bound_site_without_a_place_is_an_error() -> None:
    gm = marked(graph(Layer(without_gradients), tokens()))
    inputs = [node for node in gm.graph.find_nodes(op="placeholder") if node.name.startswith("site_0")]
    (total,) = gm.graph.find_nodes(op="output")[0].all_input_nodes
    mark(gm, "mlp", inputs, total, False)
    with pytest.raises(PlanMismatchError, match=r"site 'mlp' cannot be computed in this graph: its skip is made"):
        run(ANALYSIS, gm, planned())
