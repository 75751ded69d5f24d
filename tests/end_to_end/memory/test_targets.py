"""A part of a graph that runs without gradients beside one that has them: self-distillation, a moving target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.nets.small import Net, PostBlock, agree, compiled, inputs, results, upgraded


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_a_target_without_gradients_in_the_same_graph(kernels: str) -> None:
    """What is computed twice is one to AOTAutograd, a norm that is made again in the second run as well."""
    model = upgraded(Net, 3, PostBlock, moved=True)

    def step(x: Tensor) -> Tensor:
        with torch.no_grad():
            target = model(x).tanh()
        out: Tensor = model(x) - target
        return out

    found = results(compiled(step, compiler="aot_eager", recompute=3, kernels=kernels), model, inputs())
    assert agree(found, results(compiled(step), model, inputs()))
