"""Without upgrade: the backend gives a model its parameters at the first compiled call."""

from __future__ import annotations

import warnings

from torch import fx, nn

from mhc_compile.capture import Stack, resolve_owners, without_markers
from mhc_compile.config import Config
from mhc_compile.errors import LazyUpgradeError, MHCWarning
from mhc_compile.plan import number, plan_graph
from mhc_compile.report import Report
from mhc_compile.site import ATTRIBUTE, RootSites, Sites
from mhc_compile.upgrade import register

_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


def is_settled(root: nn.Module | None) -> bool:
    """Tell whether a frame's module is upgraded, or part of a model that is; its graphs without markers are plain."""
    return root is not None and any(isinstance(module, Sites) for module in root.modules())


def upgrade_frame(gm: fx.GraphModule, root: nn.Module | None, config: Config) -> Report:
    """Plan one graph and register its sites on the frame's module.

    Raises:
        LazyUpgradeError: the model is wrapped for distributed training, or its modules cannot be reached.
    """
    copied = without_markers(gm)
    plan = plan_graph(copied, config, Stack())
    draft = number([plan], config)
    report = Report(draft.plan, draft.rejections, (), (), 1, root)
    if not draft.plan.sites:
        return report
    if root is None:
        owners = resolve_owners(gm)
        settled = [path for path, module in owners.items() if isinstance(getattr(module, ATTRIBUTE, None), RootSites)]
        if settled:
            return Report(draft.plan, (), (), (), 1, None)
        raise LazyUpgradeError(
            "torch.compile was given a function, not a module, so there is nowhere to keep the plan of the model inside"
            " it; call mhc_compile.upgrade(model, args) first"
        )
    names = {cls.__name__ for module in root.modules() for cls in type(module).__mro__}
    wrapper = next((name for name in _WRAPPERS if name in names), None)
    if wrapper:
        raise LazyUpgradeError(
            f"the model is wrapped in {wrapper} already, so parameters created now would be neither sharded nor"
            " synchronised; call mhc_compile.upgrade(model, args) before wrapping it"
        )
    register(root, draft.plan)
    warnings.warn(
        f"mhc created the parameters of {len(draft.plan.sites)} hyper-connections at this first call: an optimizer built"
        " before does not hold them (build it now from mhc_compile.param_groups(model, lr, weight_decay)), and this one"
        " call ran the original graph. Call mhc_compile.upgrade(model, args) first to avoid both",
        MHCWarning,
        stacklevel=2,
    )
    return report
