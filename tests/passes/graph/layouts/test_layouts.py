"""How tensors lie, and who can tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mhc_compile.passes.graph import layouts
from mhc_compile.passes.graph.facts import GraphFacts
from tests.nets.structures import Layer, Step, graph, tokens

IMAGE = torch.empty(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("tensor", "axes", "last"),
    [
        pytest.param(IMAGE, (0, 1, 2, 3), False, id="in order"),
        pytest.param(IMAGE.to(memory_format=torch.channels_last), (0, 2, 3, 1), True, id="channels last"),
        pytest.param(IMAGE.transpose(0, 2), (2, 1, 0, 3), False, id="turned"),
        pytest.param(IMAGE[:, :, :, 1:], (0, 1, 2, 3), False, id="a part"),
        pytest.param(IMAGE[:, :, :1, :1], (0, 1, 2, 3), True, id="one token"),
        pytest.param(IMAGE[:, :1].expand(2, 3, 4, 5), (0, 1, 2, 3), False, id="expanded"),
    ],
)
def test_axes_in_memory(tensor: Tensor, axes: tuple[int, ...], last: bool) -> None:
    assert layouts.in_memory(tensor) == axes
    assert layouts.lies_last(tensor, -3) == last


def returned(step: Step) -> tuple[Any, set[Any]]:
    gm = graph(Layer(step), tokens())
    return gm.graph.find_nodes(op="output")[0].all_input_nodes[0], GraphFacts(gm).overwritten


@pytest.mark.parametrize(
    ("step", "seen"),
    [
        pytest.param(lambda _, x: x.view(-1), True, id="view"),
        pytest.param(lambda _, x: torch.as_strided(x, (2,), (1,)), True, id="as_strided"),
        pytest.param(lambda _, x: x.reshape(-1), False, id="reshape"),
        pytest.param(lambda _, x: x.sin().reshape(-1).mul_(2), True, id="reshape, then overwritten"),
        pytest.param(lambda _, x: F.interpolate(x, 2), False, id="interpolate"),
        pytest.param(lambda _, x: x + 1, False, id="add"),
        pytest.param(lambda _, x: x @ x.mT, False, id="matmul"),
    ],
)
def test_what_can_tell(step: Step, seen: bool) -> None:
    node, changed = returned(step)
    if node.target == "mul_":
        (node,) = node.all_input_nodes
    assert layouts.is_seen_by(node, changed) == seen
    assert layouts.is_seen_by(next(iter(node.graph.find_nodes(op="output"))), ())


@pytest.mark.parametrize(
    ("step", "own"),
    [
        pytest.param(lambda self, x: self.proj(x), True, id="linear"),
        pytest.param(lambda _, x: x @ x.mT, True, id="matmul"),
        pytest.param(lambda _, x: x[0] @ x.mT, False, id="matmul of a matrix"),
        pytest.param(lambda _, x: x.contiguous(), True, id="contiguous"),
        pytest.param(lambda _, x: x.relu(), False, id="relu"),
    ],
)
def test_what_has_a_layout_of_its_own(step: Step, own: bool) -> None:
    assert layouts.is_own(returned(step)[0]) == own
