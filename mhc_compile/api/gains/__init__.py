"""gains: what the streams of an upgraded model do, measured in one run of its rewritten graph.

`watching`: runs rewritten graphs and notes the maps of every site; `mixing`: what is computed of them; `result`: what
the user gets, and `tables`, how it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mhc_compile.api.gains import mixing
from mhc_compile.api.gains.result import Gains
from mhc_compile.api.gains.watching import Watch
from mhc_compile.capture.frames import original
from mhc_compile.capture.model_run import CompiledAside
from mhc_compile.errors import CaptureError, NotUpgradedError
from mhc_compile.model.sites import OwnerSites, RootSites
from mhc_compile.plan.model_plan import ModelPlan


def gains(model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Gains:
    """Run an upgraded model once and measure its streams: gains of every H_res and composite, spread, dominance.

    What runs is the rewritten graph, op by op and without gradients, in the mode that the model is in (train or eval).
    The user's compilation, random state, buffers, gradients and training flags are left alone. Under FSDP and
    with DTensors every process must call it, and sees its own tokens; of DistributedDataParallel one is enough.

    Args:
        model: a model that was upgraded, compiled or not, as a whole or block by block.
        args: positional arguments of a call.
        kwargs: keyword arguments of that call.

    Returns:
        The gains (paper, section 5.4); print them to see a table.

    Raises:
        NotUpgradedError: the model holds no mHC parameters.
        CaptureError: the model does not run with these arguments, or none of its sites ran.
    """
    with_gains = Observer(model)
    try:
        return with_gains(tuple(args), dict(kwargs or {}))
    finally:
        with_gains.close()


class Observer:
    """Measures gains as often as it is called, and traces the model at the first call only."""

    def __init__(self, model: nn.Module, *, dynamic: bool = False) -> None:
        """Look at the model.

        Args:
            model: a model that was upgraded.
            dynamic: let sizes that change between calls become dynamic.

        Raises:
            NotUpgradedError: the model holds no mHC parameters.
        """
        model = whole(model)
        self.plan = plan_of(model)
        self._watch = Watch()
        self._compiled = CompiledAside(model, self._watch, dynamic=dynamic)

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Gains:
        """Run the model once.

        Raises:
            CaptureError: the model does not run with these arguments, or none of its sites ran.
        """
        with torch.no_grad():
            with self._watch.watching() as passages:
                self._compiled(*args, **kwargs)
            if not any(passage.h_res.numel() for passage in passages):
                raise CaptureError(
                    "no site of the model ran with these arguments, so there is nothing to measure: is it inside"
                    " mhc.plain(model), or was it given no tokens?"
                )
            config = self.plan.config
            sites = mixing.measured(passages, config.connection)
        return Gains(config.streams, config.connection, config.projection, sites)

    def close(self) -> None:
        """Let go of what was traced."""
        self._compiled.close()


def whole(model: nn.Module) -> nn.Module:
    """Return the model without what torch.compile and DistributedDataParallel put around it.

    DistributedDataParallel would wait for other processes, which need not look at their gains.
    """
    model = original(model)
    return original(model.module) if isinstance(model, nn.parallel.DistributedDataParallel) else model


def plan_of(model: nn.Module) -> ModelPlan:
    """Return the plan of an upgraded model.

    Raises:
        NotUpgradedError: the model holds no mHC parameters.
    """
    for module in model.modules():
        if isinstance(module, RootSites) and module.kept is None:
            return ModelPlan.from_json(module.text)
    part = any(isinstance(module, OwnerSites) for module in model.modules())
    raise NotUpgradedError(
        "this is a part of an upgraded model, which runs as its plan says only within the whole; give the whole model"
        if part
        else "the model holds no mHC parameters, so there are no streams to look at; call mhc_compile.upgrade(model,"
        " args) first"
    )
