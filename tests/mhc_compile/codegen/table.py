"""What kernels are tried on, in Triton's interpreter as in C++."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tests.equations.fused import Fused, exists

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
OPS = ["enter", "seam", "leave", "coefficients"]
NORMS = ["none", "rms", "rms weight", "rms_cast weight", "layer", "layer weight shift"]
EQUAL = [False, True]
SPACE: dict[str, Any] = {
    "op": OPS,
    "n": [1, 2, 3, 4, 8],
    "c": [1, 17, 97, 131, 320],
    "tokens": [(), (0,), (1,), (2, 0, 3), (3, 7), (130,)],
    "norm": NORMS,
    "equal": EQUAL,
    "v4": [False, True],  # connection "deepseek-v4"
    "projection": ["sinkhorn", "identity"],
    "iters": [1, 4, 5, 6, 20],  # the way back goes in segments of five
    "offset": [False, True],
    "scale": [False, True],
    "multiplier": [1.0, 0.5, -2.0],
    "strided": [False, True],
}


def sound(row: Mapping[str, Any]) -> bool:
    """Leave out what fp32 cannot tell, and what takes half a minute.

    A norm of one feature, or behind one stream, takes back all that comes before it, and leaves rounding errors.
    """
    told = row["norm"] == "none" or (row["c"] > 1 and (row["n"] > 1 or row["norm"] == "rms weight"))
    return exists(row) and told and (row["n"] <= 4 or row["tokens"] != (130,))


def case_of(row: Mapping[str, Any]) -> Fused:
    """Return the site of a combination, in fp32."""
    given = ("n", "c", "tokens", "norm", "projection", "iters", "multiplier")
    return Fused(
        **{name: row[name] for name in given},
        connection="deepseek-v4" if row["v4"] else "mhc",
        dtype=FP32,
        equal_streams=row["equal"],
        offset_given=row["offset"],
        scale_given=row["scale"],
    )


REPLAYS = {"n2-3-bf16": (2, 3, BF16), "n3-2-fp32": (3, 2, FP32), "n4-1-fp16": (4, 1, FP16), "n4-2-bf16": (4, 2, BF16)}
