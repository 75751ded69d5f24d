"""An upgraded model afterwards: run the original function, remove the parameters, restore them from a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from mhc_compile.api.checkpoints import Checkpoint
from mhc_compile.capture.frames import original
from mhc_compile.errors import AlreadyUpgradedError, NotUpgradedError, PlanMismatchError, TrainedParametersError
from mhc_compile.model.attach import attach_sites, detach_sites
from mhc_compile.model.phase import set_removed
from mhc_compile.model.sites import OwnerSites, sites_in


@contextlib.contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Run the original function on purpose, compiled or not, without the hyper-connections.

    Args:
        model: an upgraded model, or a part of one; another model is left as it is.
    """
    held = [module for module in model.modules() if isinstance(module, OwnerSites)]
    before = [sites.disabled for sites in held]
    try:
        for sites in held:
            sites.disabled = True
        yield
    finally:
        for sites, value in zip(held, before, strict=True):
            sites.disabled = value


def remove(model: nn.Module, force: bool = False) -> None:
    """Take all mHC parameters away; the model is what it was before upgrade, and runs plain wherever it is compiled.

    Args:
        model: an upgraded model.
        force: remove them even where training has moved them, which changes the function.

    Raises:
        TrainedParametersError: parameters have moved, and force is False.
        NotUpgradedError: there are none.
    """
    sites = [site for _, site in sites_in(model)]
    if not sites:
        raise NotUpgradedError("the model holds no mHC parameters, so there is nothing to remove")
    moved = [] if force else [site.path for site in sites if not site.phi.is_meta and site.has_moved()]
    if moved:
        raise TrainedParametersError(
            f"the parameters of {len(moved)} of {len(sites)} sites have moved since upgrade (such as {moved[0]}), so"
            " the model without them computes something else; remove(model, force=True) drops them all the same"
        )
    detach_sites(model)
    set_removed(model)


def reset_parameters(model: nn.Module) -> None:
    """Set all mHC parameters to the values at which the model computes what it computed before its upgrade.

    For models that were upgraded on the meta device: after `model.to_empty(device=...)`, beside what initialises or
    loads the model's own parameters.

    Args:
        model: an upgraded model, or a part of one.
    """
    for _, site in sites_in(model):
        site.reset_parameters()


def restore(model: nn.Module, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
    """Upgrade a model by the plan of a checkpoint, and load the checkpoint.

    Names may begin with what wrappers add (`_orig_mod.`, `module.`, that of a LightningModule's attribute), or the
    model may be such a wrapper around what was upgraded. Sites of layers that were pruned are left out.

    Args:
        model: a model of the architecture that was saved, without mHC parameters; where loading fails, it is as it was.
        state_dict: that of an upgraded model.
        strict: as for `load_state_dict`.

    Returns:
        What `load_state_dict` returns.

    Raises:
        NotUpgradedError: the checkpoint holds no plan.
        AlreadyUpgradedError: the model holds mHC parameters already; load_state_dict is for these.
        PlanMismatchError: the plan is of another format, or names modules that this model does not have.
    """
    model = original(model)
    saved = Checkpoint.of(state_dict, model)
    if any(isinstance(module, OwnerSites) for module in model.modules()):
        raise AlreadyUpgradedError("the model holds mHC parameters already; use model.load_state_dict(state_dict)")
    upgraded = saved.upgraded(model)
    lost = saved.plan.lost_owner(dict(upgraded.named_modules()))
    if lost is not None:
        raise PlanMismatchError(
            f"the checkpoint's plan has sites in {lost!r}, which this model does not have; restore into the"
            " architecture that was saved"
        )
    attach_sites(upgraded, saved.plan)
    try:
        return model.load_state_dict(dict(saved.state), strict=strict)
    except BaseException:
        detach_sites(upgraded)
        raise
