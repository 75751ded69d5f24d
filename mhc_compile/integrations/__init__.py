"""Upgraded models in other libraries, each imported where it is used.

`pretrained`: load what Hugging Face's `save_pretrained` wrote.
`trainer`: their Trainer, with the optimizer groups of hyper-connections.
`accelerate`: the backend's name, where accelerate lists backends.
"""

from __future__ import annotations

from typing import Any

from mhc_compile.integrations import trainer
from mhc_compile.integrations.accelerate import register_backend
from mhc_compile.integrations.trainer import MHCTrainerMixin, regroup

__all__ = ["MHCTrainer", "MHCTrainerMixin", "register_backend", "regroup"]


def __getattr__(name: str) -> Any:
    if name == "MHCTrainer":
        return trainer.MHCTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
