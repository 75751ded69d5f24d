"""Sums of DTensors become sums of their parts, and what reads a term reads it by way of its part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from mhc_compile.passes import Results
from mhc_compile.passes.canonicalize import Canonicalize
from mhc_compile.passes.graph.layouts import sharded
from tests.nets.structures import C, Layer, graph, ops, request


def captured(mesh: Any, step: Any, dim: int) -> tuple[fx.GraphModule, Tensor]:
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    x = distribute_tensor(torch.randn(2, 5, C), mesh, [Shard(dim)])
    return graph(distribute_module(Layer(step), mesh), x), x


def respelt(mesh: Any, step: Any, dim: int = 1) -> tuple[list[str], list[str]]:
    """The ops before and after, without those of the branches."""
    gm, _ = captured(mesh, step, dim)
    before = ops(gm)
    Canonicalize()(gm, request(), Results())
    gm.graph.lint()
    gm.recompile()
    (total,) = gm.graph.find_nodes(op="output")[0].args[0]
    assert sharded.placements(total) is not None
    return before, ops(gm)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_sum(mesh: Any, dim: int) -> None:
    before, after = respelt(mesh, lambda s, x: x + x.tanh(), dim)
    assert before == ["tanh", "add"]
    assert after == ["local_part", "of_parts", "tanh", "local_part", "add", "of_parts"]


def test_a_difference(mesh: Any) -> None:
    _, after = respelt(mesh, lambda s, x: x.sub(x.tanh()))
    assert after == ["local_part", "of_parts", "tanh", "local_part", "sub", "of_parts"]


def test_a_sum_of_a_sum_takes_its_part_as_it_is(mesh: Any) -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = x + x.tanh()
        return x.tanh() + x

    _, after = respelt(mesh, step)
    first = ["local_part", "of_parts", "tanh", "local_part", "add", "of_parts"]
    assert after == [*first, "tanh", "local_part", "add", "of_parts"]


def test_a_term_of_two_sums_has_one_part(mesh: Any) -> None:
    _, after = respelt(mesh, lambda s, x: (x + x.tanh()) * (x + x.sin()))
    assert after.count("local_part") == 3


def test_a_term_that_is_overwritten_stays_whole(mesh: Any) -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        other, total = y.mT, y + y.sin()
        y.mul_(2)
        return total * other.mT

    before, after = respelt(mesh, step)
    assert after == ["transpose" if op == "getattr" else op for op in before]
