"""What happens to an upgraded model afterwards: run it plain, remove the parameters, restore them from a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from mhc_compile.errors import AlreadyUpgradedError, NotUpgradedError, PlanMismatchError, TrainedParametersError
from mhc_compile.model.attach import register, unregister
from mhc_compile.model.sites import ATTRIBUTE, Site, Sites, decode
from mhc_compile.plan.model_plan import ModelPlan

EXTRA_STATE = f"{ATTRIBUTE}._extra_state"


@contextlib.contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Run the original function on purpose, compiled or not, without the hyper-connections."""
    held = [module for module in model.modules() if isinstance(module, Sites)]
    before = [sites.plain for sites in held]
    try:
        for sites in held:
            sites.plain = True
        yield
    finally:
        for sites, value in zip(held, before, strict=True):
            sites.plain = value


def remove(model: nn.Module, force: bool = False) -> None:
    """Take all mHC parameters away; the model is what it was before upgrade.

    Raises:
        TrainedParametersError: parameters have moved, so removing them changes the function, and force is False.
        NotUpgradedError: there are none.
    """
    sites = [module for module in model.modules() if isinstance(module, Site)]
    if not sites:
        raise NotUpgradedError("the model holds no mHC parameters, so there is nothing to remove")
    moved = [] if force else [site.path for site in sites if not site.phi.is_meta and site.has_moved()]
    if moved:
        raise TrainedParametersError(
            f"the parameters of {len(moved)} of {len(sites)} sites have moved since upgrade (such as {moved[0]}), so"
            " the model without them computes something else; remove(model, force=True) drops them all the same"
        )
    unregister(model)


def restore(model: nn.Module, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
    """Load the checkpoint of an upgraded model into one without mHC parameters, which get the checkpoint's plan.

    Returns:
        What `load_state_dict` returns.

    Raises:
        NotUpgradedError: the checkpoint holds no plan.
        AlreadyUpgradedError: the model holds mHC parameters; load_state_dict does it.
        PlanMismatchError: the plan names modules that this model does not have.
    """
    if EXTRA_STATE not in state_dict:
        raise NotUpgradedError(f"the checkpoint holds no {EXTRA_STATE}, so it is not one of an upgraded model")
    if any(isinstance(module, Sites) for module in model.modules()):
        raise AlreadyUpgradedError("the model holds mHC parameters already; use model.load_state_dict(state_dict)")
    plan = ModelPlan.from_json(decode(state_dict[EXTRA_STATE]))
    known = dict(model.named_modules())
    missing = [site.owner for site in plan.sites if site.owner not in known]
    if missing:
        raise PlanMismatchError(
            f"the checkpoint's plan has sites in {missing[0]!r}, which this model does not have; restore into the"
            " architecture that was saved"
        )
    register(model, plan)
    try:
        return model.load_state_dict(dict(state_dict), strict=strict)
    except BaseException:
        unregister(model)
        raise
