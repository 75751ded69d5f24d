"""Whole models on a GPU, if there is one: Inductor and generated kernels against fp64 on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import mhc_compile as mhc
from mhc_compile.codegen.runtime import dispatch
from tests.nets.library import CASES
from tests.nets.small import compiled, floats, gradients, perturb

pytestmark = pytest.mark.gpu
NAMES = ["llama", "gpt2", "vit"]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directions of the kernels' launches while a test runs."""
    seen: list[str] = []
    launch = dispatch._launch

    def noted(direction: str, *args: Any) -> list[Tensor]:
        seen.append(direction)
        return launch(direction, *args)

    monkeypatch.setattr(dispatch, "_launch", noted)
    return seen


def to(call: Any, device: str, dtype: torch.dtype) -> Any:
    def moved(t: Tensor) -> Tensor:
        return t.to(device, dtype) if t.is_floating_point() else t.to(device)

    return tree_map_only(Tensor, moved, call)


def computed(model: nn.Module, call: dict[str, Any], device: str, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """What a copy of the model computes on a device: outputs, then the gradient of every parameter."""
    torch._dynamo.reset()
    twin = copy.deepcopy(model).to(device, dtype)
    out = compiled(twin, **options)(**to(call, device, dtype))
    found = gradients(out, twin.parameters())
    return [t.detach().cpu().double() for t in (*floats(out), *found) if t is not None]


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The worst relative error in the Frobenius norm, of tensors that are not tiny beside the largest."""
    assert len(found) == len(exact)
    top = max(float(t.norm()) for t in exact)
    return max(float((a - b).norm()) / max(float(b.norm()), 1e-3 * top) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_every_gradient(name: str, dtype: torch.dtype, launches: list[str]) -> None:
    """In fp32 exact but for rounding; in bf16 no further off than the same model without kernels."""
    model, call = CASES[name].make()
    mhc.upgrade(model.eval(), kwargs=call)  # no dropout
    perturb(model)
    exact = computed(model, call, "cpu", torch.float64)
    plain = error(computed(model, call, "cuda", dtype, compiler="inductor", kernels="reference"), exact)
    launches.clear()
    fast = error(computed(model, call, "cuda", dtype, compiler="inductor", kernels="triton"), exact)
    assert {"forward", "backward"} <= set(launches)
    assert fast < (1e-4 if dtype == torch.float32 else 1.5 * plain), (fast, plain)
