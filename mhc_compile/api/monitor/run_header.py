"""What a run's log says once of its model, and how it lists the gains of all sites."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mhc_compile.api.explain import explain
from mhc_compile.api.gains.result import Gains
from mhc_compile.codegen.runtime.support import support
from mhc_compile.config import Config
from mhc_compile.errors import MHCError
from mhc_compile.model.sites import sites_in
from mhc_compile.ops import limits


def of(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], every: int) -> dict[str, Any]:
    """Return what is known of an upgraded model before it trains: its map, parameters, memory and kernels."""
    config = next(site.config for _, site in sites_in(model))
    return {
        "kind": "model",
        "name": type(model).__name__,
        "every": every,
        "config": {**config.function(), **config.choice(), "recompute": config.recompute, "kernels": config.kernels},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "parameters": sum(p.numel() for p in model.parameters()),
        "map": _map(model, args, kwargs, config),
        "kernels": kernels(model, config),
    }


def _map(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return the report of `explain`, or why there is none."""
    try:
        with torch.enable_grad():
            return explain(model, args, kwargs, config=config).to_dict()
    except MHCError as error:
        return {"error": str(error)}


def kernels(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Return, for each device and dtype of the model's own parameters, the language of its kernels or why none."""
    kinds = dict.fromkeys((p.device, p.dtype) for p in model.parameters() if p.is_floating_point())
    found: list[dict[str, Any]] = []
    for device, dtype in kinds:
        asked = support(config.kernels, [device])
        why = "kernels='reference' asks for none" if config.kernels == "reference" else asked.lacking
        why = limits.why_not(config.streams, config.connection, config.projection, dtype, device.type) or why
        language = None if why or device.type not in asked.types else "C++" if device.type == "cpu" else "Triton"
        found.append({"device": str(device), "dtype": str(dtype), "language": language, "why_not": why})
    return found


def columns(gains: Gains) -> dict[str, list[Any]]:
    """Return the gains of all sites as lists, one entry for each site and call."""
    sites = gains.sites
    return {
        "name": [site.name for site in sites],
        "call": [site.call for site in sites],
        "region": [site.region for site in sites],
        "forward": [site.h_res.forward.mean for site in sites],
        "backward": [site.h_res.backward.mean for site in sites],
        "composite_forward": [site.composite.forward.mean for site in sites],
        "composite_backward": [site.composite.backward.mean for site in sites],
        "composite_forward_max": [site.composite.forward.max for site in sites],
        "composite_backward_max": [site.composite.backward.max for site in sites],
        "column_error": [site.column_error for site in sites],
        "from_identity": [site.from_identity for site in sites],
        "from_uniform": [site.from_uniform for site in sites],
        "spread": [site.spread for site in sites],
        "dominance": [site.dominance for site in sites],
        "h_pre": [site.h_pre for site in sites],
        "h_post": [site.h_post for site in sites],
        "h_res": [site.h_res.matrix for site in sites],
        "composite": [site.composite.matrix for site in sites],
    }
