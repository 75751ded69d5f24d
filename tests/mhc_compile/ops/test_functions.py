from __future__ import annotations

import functools

import pytest
import torch

from mhc_compile.ops.functions import accumulator
from tests.equations import helpers
from tests.equations.helpers import Case, normal
from tests.pairwise import pairwise


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
    ids=["bf16", "fp16", "fp64"],
)
def test_accumulator(dtype: torch.dtype, wide: torch.dtype) -> None:
    assert accumulator(dtype) == wide


@pairwise(n=[1, 2, 3, 4, 8], dtype=[torch.bfloat16, torch.float16])
def test_gradients_are_rounded_once(n: int, dtype: torch.dtype) -> None:
    """Those of streams and branch to their dtype, those of the coefficients to fp32."""
    case = Case(n, 33, (40,), dtype=dtype)
    x, f, pre, post, res = (
        case.streams(),
        case.branch(),
        normal(40, n, seed=7).float(),
        normal(40, n, seed=8).float(),
        normal(40, n, n, seed=9).float(),
    )
    for op, tensors in {"expand": [f], "read": [x, pre], "write": [x, f, post, res], "readout": [x]}.items():
        by_equation = functools.partial(getattr(helpers, op), n=n)
        _, found = helpers.values_and_gradients(helpers.by_op(op, n), tensors, wide=False)
        _, exact = helpers.values_and_gradients(by_equation, tensors, wide=True)
        for tensor, actual, wanted in zip(tensors, found, exact, strict=True):
            assert actual.dtype == tensor.dtype
            if tensor.dtype == dtype:
                assert (actual != wanted.to(dtype)).double().mean() <= 1e-3, op
            else:
                helpers.near(actual, wanted, 1e-6)
