"""Which op overwrites a tensor, who can tell, and its spelling without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mhc_compile.passes.canonicalize.overwriting import overwrites, take_apart
from mhc_compile.passes.graph.facts import GraphFacts
from tests.nets.structures import Layer, Step, graph, tokens


def seen(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    before = y.mT
    y.mul_(2)
    return before


def narrow(_: Any, x: Tensor) -> Tensor:
    return x.bfloat16().exp_()  # autocast would widen it, were it not in place


@pytest.mark.parametrize(
    ("step", "apart", "spelling"),
    [
        pytest.param(lambda _, x: x.sin().mul_(2), True, "mul", id="method"),
        pytest.param(lambda _, x: x.sin().__imul__(2), True, "mul", id="operator"),
        pytest.param(lambda _, x: torch.exp_(x.sin()), True, "exp", id="function"),
        pytest.param(lambda _, x: F.relu(x.sin(), inplace=True), True, "relu", id="flag"),
        pytest.param(lambda _, x: x.sin().zero_(), False, "zero_", id="no other spelling"),
        pytest.param(seen, False, "mul_", id="seen"),
        pytest.param(narrow, False, "exp_", id="narrow"),
    ],
)
def test_taken_apart(step: Step, apart: bool, spelling: str) -> None:
    gm = graph(Layer(step), tokens())
    (node,) = filter(overwrites, gm.graph.nodes)
    take_apart(GraphFacts(gm))
    assert overwrites(node) != apart
    assert getattr(node.target, "__name__", node.target) == spelling
    gm.graph.lint()
