"""A plan as text: what the sites of a model know of it, and what a checkpoint holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhc_compile.errors import PlanMismatchError


class PlanText:
    """A plan as its JSON text, "" where a first call makes it; one object for a model's sites, another for a copy's."""

    def __init__(self, text: str = "") -> None:
        """Hold the text."""
        self.text = text


def encode(plan: str) -> Tensor:
    """Return a plan's JSON text as a checkpoint's extra state."""
    return torch.tensor(list(plan.encode()), dtype=torch.uint8)


def decode(state: Any) -> str:
    """Return the JSON text of a plan from a checkpoint's extra state, also from one whose bytes were cast to floats.

    Who loads a model in 16 bits casts all that a checkpoint holds, and these hold whole numbers up to 256.

    Raises:
        PlanMismatchError: the state is not what `RootSites.get_extra_state` returns.
    """
    known = isinstance(state, Tensor) and (state.dtype == torch.uint8 or state.is_floating_point())
    text = bytes(state.to(torch.uint8).tolist()).decode(errors="replace") if known else ""
    if not text.startswith("{"):
        raise PlanMismatchError("the checkpoint's mhc._extra_state is not a plan of mhc_compile; was it cut off?")
    return text
