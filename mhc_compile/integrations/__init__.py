"""Upgraded models in other libraries, each imported where it is used.

`pretrained`: load what Hugging Face's `save_pretrained` wrote.
`trainer`: their Trainer, with the optimizer groups of hyper-connections.
`accelerate`: the backend's name, where accelerate lists backends.
`deepseek_v4`: hyper-connections in the layout of DeepSeek-V4.
"""

from __future__ import annotations

from typing import Any

from mhc_compile.integrations import trainer
from mhc_compile.integrations.accelerate import register_backend
from mhc_compile.integrations.deepseek_v4 import from_deepseek_v4, to_deepseek_v4
from mhc_compile.integrations.trainer import MHCTrainerMixin, regroup

__all__ = ["MHCTrainer", "MHCTrainerMixin", "from_deepseek_v4", "register_backend", "regroup", "to_deepseek_v4"]


def __getattr__(name: str) -> Any:
    if name == "MHCTrainer":
        return trainer.MHCTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
