"""Create the sites of a plan on a model, or take them away."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mhc_compile.capture.recorders import trace_recorders
from mhc_compile.config import Config
from mhc_compile.model import config_note, owners, phase
from mhc_compile.model.optimizers import watch_optimizers
from mhc_compile.model.plan_text import PlanText
from mhc_compile.model.sites import ATTRIBUTE, Flow, OwnerSites, RootSites, SiteModule
from mhc_compile.model.start_values import Place
from mhc_compile.plan.model_plan import ModelPlan, SitePlan


def attach_sites(model: nn.Module, plan: ModelPlan, *, first_call: bool = False) -> RootSites:
    """Create the sites of a plan on their owners, all or none.

    Args:
        model: holds the plan.
        plan: the sites.
        first_call: the plan is that of one graph of a first call; it joins those of graphs before, and more may come.

    Returns:
        What holds the plan.

    Raises:
        NameTakenError: an owner, or the model, has an attribute `mhc` of its own.
        NotRestoredError: at a first call, the model was saved with sites that it does not have now.
    """
    if first_call:
        config_note.check(model)
    held = model._modules.get(ATTRIBUTE)
    if first_call and isinstance(held, RootSites):
        before = ModelPlan.from_json(held.text)
        joined = before.joined(plan)
        new = joined.sites[len(before.sites) :]
        held.text = joined.to_json()
    else:
        held, new = RootSites(plan.to_json()), plan.sites
    found = {path: model.get_submodule(path) for path in dict.fromkeys(site.owner for site in new)}
    for path, module in {**found, "": model}.items():
        owners.check(module, path)
    try:
        model.add_module(ATTRIBUTE, held)
        owners.adopt(model)
        same, successors = PlanText("" if first_call else held.text), plan.successors
        for site in new:
            made = _create(found[site.owner], site, plan.config)
            made.flow = Flow(same, successors[site.name], site.starts, site.region)
    except BaseException:
        detach_sites(model)
        raise
    (phase.set_collecting if first_call else phase.set_planned)(model)
    known = dict(model.named_modules())
    for path, spots in plan.left_out.items():
        if path in known:
            phase.leave_out(known[path], spots)
    config_note.write(model, plan)
    trace_recorders()
    watch_optimizers(model)
    return held


@torch.inference_mode(False)  # tensors that are made in inference mode can never be trained
def _create(module: nn.Module, site: SitePlan, config: Config) -> SiteModule:
    """Create one site on its owner: on the owner's device, and in fp64 where the owner is."""
    if not isinstance(module._modules.get(ATTRIBUTE), OwnerSites):
        module.add_module(ATTRIBUTE, OwnerSites())
    owners.adopt(module)
    reference = next((p for p in module.parameters() if p.is_floating_point()), None)
    with reference.device if reference is not None else torch.get_default_device():
        made = SiteModule(
            path=site.name,
            label=site.label,
            place=Place(site.k, site.length),
            channels=site.channels,
            config=config,
            entry=site.predecessor is None,
            spot=site.spot,
            region=site.region,
            head=site.head,
        )
    if reference is not None and reference.dtype == torch.float64:
        made.double()
    held: Any = module._modules[ATTRIBUTE]
    held.add(made)
    return made


def detach_sites(model: nn.Module) -> None:
    """Take all sites away; modules get their classes back."""
    for module in list(model.modules()):
        owners.release(module)
        phase.forget_phase(module)
    config_note.erase(model)
