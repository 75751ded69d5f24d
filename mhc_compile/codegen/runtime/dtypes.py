"""The dtypes of kernels, as torch knows them."""

from __future__ import annotations

import torch

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
