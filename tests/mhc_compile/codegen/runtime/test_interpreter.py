"""The interpreter multiplies and rounds as a GPU does, once mended."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mhc_compile.codegen.inspect import subprocess_call
from mhc_compile.codegen.runtime import build, interpreter

TEXT = """
import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["N"])
def multiply(a, b, out, narrow, N):
    i, k = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    total = tl.zeros((16, 16), tl.float32)
    for _ in range(N):  # a bound that is known at run time
        total = tl.dot(tl.load(a + i * 16 + k), tl.load(b + i * 16 + k), total)
    tl.store(out + i * 16 + k, total)
    tl.store(narrow + i * 16 + k, total.to(tl.bfloat16))
"""


def products(seed: int) -> tuple[torch.Tensor, ...]:
    module = build.load(TEXT, "multiply")
    torch.manual_seed(seed)
    a, b = (torch.randn(16, 16).bfloat16() for _ in range(2))
    out, narrow = torch.empty(16, 16), torch.empty(16, 16, dtype=torch.bfloat16)
    module.multiply[(1,)](a, b, out, narrow, 2)
    return a, b, out, narrow


def test_bf16_products_loops_and_rounding() -> None:
    a, b, out, narrow = subprocess_call.call(True, products, 0)
    torch.testing.assert_close(out, 2 * a.float() @ b.float())
    assert torch.equal(narrow, out.bfloat16())


@pytest.mark.parametrize("value", [0.0, 1.0, 1.00390625, 1.01171875, -3.1415927, 1e-40, float("inf"), float("nan")])
def test_rounding_to_nearest_even(value: float) -> None:
    bits = interpreter._round(np.array([value], np.float32))
    expected = torch.tensor([value]).bfloat16()
    found = torch.from_numpy(interpreter._widen(bits))
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=0, equal_nan=True)


def test_a_process_of_the_other_kind_says_so() -> None:
    assert subprocess_call.call(True, interpreter.is_on)
    assert not subprocess_call.call(False, interpreter.is_on)


def fails() -> None:
    raise ValueError("planted")


def test_errors_come_back() -> None:
    with pytest.raises(ValueError, match="planted"):
        subprocess_call.call(True, fails)
