"""What a site does where its streams lie over processes; that they find the same is tested on processes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from mhc_compile.passes.widen import Widened
from tests.nets.structures import C, Layer, graph, ops, rewritten


def widened(mesh: Any, dim: int | None, **asked: Any) -> tuple[fx.GraphModule, Widened]:
    """Two sites on a stream that is sharded on a dimension, or replicated."""
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor

    def step(self: Any, x: Any) -> Tensor:
        x = x + self.proj(x.redistribute(placements=[Replicate()]))
        out: Tensor = x + self.mlp(x.redistribute(placements=[Replicate()]))
        return out

    x = distribute_tensor(torch.randn(2, 5, C), mesh, [Replicate() if dim is None else Shard(dim)])
    gm, results = rewritten(graph(distribute_module(Layer(step), mesh), x), **asked)
    return gm, results[Widened]


@pytest.mark.parametrize(
    ("dim", "parameters", "op"),
    [(None, 0, "coefficients"), (0, 8, "coefficients"), (1, 8, "coefficients"), (2, 8, "coefficients_of_parts")],
    ids=["whole", "batch", "tokens", "features"],
)
def test_gradients_of_parameters_and_logits_are_summed(mesh: Any, dim: int | None, parameters: int, op: str) -> None:
    gm, _ = widened(mesh, dim)
    found = Counter(ops(gm))
    assert found["of_all_tokens"] == parameters
    assert (found["coefficients"], found["coefficients_of_parts"]) == ((2, 0) if op == "coefficients" else (0, 2))
    assert found["write"] == 2


def test_a_site_with_some_of_the_features_has_no_kernel(mesh: Any) -> None:
    for dim, fused in ((1, True), (2, False)):
        _, made = widened(mesh, dim, devices=frozenset(("cpu",)))
        assert [site.generated for site in made.sites] == [fused] * 2
        assert [site.unfit for site in made.sites] == ["" if fused else "features are sharded over processes"] * 2
