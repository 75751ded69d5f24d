"""int8 weights by torchao, where it is installed: hyper-connections stay fp32, and all computes what it did."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import mhc_compile as mhc
from tests.nets.small import Net, compiled, inputs, made, perturb

quantization = pytest.importorskip("torchao.quantization")


def upgraded(model: Any, **options: Any) -> Any:
    mhc.upgrade(model, (inputs(),), config=mhc.Config(compiler="eager"), **options)
    perturb(model, 1.0)
    return model


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_quantized_behind_the_upgrade(name: str) -> None:
    model = upgraded(made(Net, 2).eval())
    rounded = copy.deepcopy(model)
    quantization.quantize_(rounded, getattr(quantization, name)())
    linear = [type(module.weight).__name__ for module in rounded.modules() if isinstance(module, torch.nn.Linear)]
    assert set(linear) == {"Int8Tensor"}
    assert {p.dtype for _, p in mhc.named_parameters(rounded)} == {torch.float32}
    with torch.no_grad():
        expected, plain = compiled(model)(inputs()), mhc.plain(model)
        with plain:
            unmixed = model(inputs())
        found = compiled(rounded)(inputs())
    size = expected.abs().max()
    assert (found - expected).abs().max() < 0.05 * size
    assert (unmixed - expected).abs().max() > 0.1 * size  # so it is not the plain model


def test_weights_before_the_upgrade() -> None:
    model = made(Net, 2).eval()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert compiled(upgraded(model))(inputs()).isfinite().all()


def test_rounded_activations_before_the_upgrade() -> None:
    model = made(Net, 2).eval()
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    assert compiled(upgraded(model, verify=0.05))(inputs()).isfinite().all()
