"""Norms of gradients: those of the model and those of its sites apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mhc_compile.model.optimizers import named_parameters
from mhc_compile.passes.graph.layouts.sharded import whole


def norms(model: nn.Module) -> dict[str, float]:
    """Return the 2-norms of the gradients of a model's own parameters and of its sites'; nothing where there are none.

    `share` is the part that the sites have in the square of the norm that clipping sees.
    """
    mine = {id(parameter) for _, parameter in named_parameters(model)}
    held = [p for p in model.parameters() if p.grad is not None]
    if not held:
        return {}
    own, sites = (_norm([p.grad for p in held if (id(p) in mine) is of_sites]) for of_sites in (False, True))
    total = math.hypot(own, sites)
    return {"model": own, "mhc": sites, "total": total, "share": (sites / total) ** 2 if total else 0.0}


def _norm(grads: Sequence[Tensor | None]) -> float:
    found: Any = torch.nn.utils.get_total_norm([grad for grad in grads if grad is not None]) if grads else 0.0
    return float(whole(found))
