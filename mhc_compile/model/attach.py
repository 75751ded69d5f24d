"""Create the sites of a plan on a model, or take them away."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from mhc_compile.config import Config
from mhc_compile.model import owners
from mhc_compile.model.optimizers import watch
from mhc_compile.model.sites import ATTRIBUTE, PLANNED, Flow, RootSites, Site, Sites
from mhc_compile.model.start_values import Place
from mhc_compile.plan.model_plan import ModelPlan, SitePlan


def register(model: nn.Module, plan: ModelPlan, extend: bool = False) -> None:
    """Create the sites of a plan on their owners, all or none.

    Args:
        model: holds the plan.
        plan: the sites.
        extend: the plan is that of one graph of a first call; others may come.
    """
    held = getattr(model, ATTRIBUTE, None)
    if extend and isinstance(held, RootSites):
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
        held.open = extend
        model.add_module(ATTRIBUTE, held)
        same, successors = object(), Counter(site.predecessor for site in new)
        for site in new:
            made = _create(found[site.owner], site, plan.config)
            made.flow = Flow(same, successors[site.name], site.starts)
    except BaseException:
        unregister(model)
        raise
    for module in model.modules() if not extend else ():
        vars(module)[PLANNED] = True
    watch(model)


def _create(module: nn.Module, site: SitePlan, config: Config) -> Site:
    """Create one site on its owner: on its device, in fp64 if it is."""
    if not isinstance(getattr(module, ATTRIBUTE, None), Sites):
        module.add_module(ATTRIBUTE, Sites())
    owners.adopt(module)
    reference = next((p for p in module.parameters() if p.is_floating_point()), None)
    with reference.device if reference is not None else torch.get_default_device():
        place = Place(site.k, site.length)
        made = Site(site.name, site.label, place, site.channels, config, entry=site.predecessor is None)
    if reference is not None and reference.dtype == torch.float64:
        made.double()
    getattr(module, ATTRIBUTE).add(made)
    return made


def unregister(model: nn.Module) -> None:
    """Take all sites away; modules get their classes back."""
    for module in list(model.modules()):
        owners.release(module)
        vars(module).pop(PLANNED, None)
