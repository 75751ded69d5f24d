"""Without upgrade: the backend gives a model its parameters at the first compiled call."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from mhc_compile.capture.frames import is_in_parts, keep_to
from mhc_compile.capture.graphs import without_markers
from mhc_compile.capture.owners import Stack
from mhc_compile.config import Config
from mhc_compile.errors import LazyUpgradeError, MHCWarning
from mhc_compile.model.attach import register
from mhc_compile.model.sites import ATTRIBUTE, PLANNED, RootSites, Sites
from mhc_compile.passes.graph import checkpoints
from mhc_compile.plan.drafting import Draft, number, plan_graph
from mhc_compile.plan.joints import BROKEN
from mhc_compile.plan.model_plan import ModelPlan

_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


def is_settled(root: nn.Module | None) -> bool:
    """Tell whether the frame's module has its plan, so that a graph without markers is plain on purpose."""
    if root is None:
        return False
    held = getattr(root, ATTRIBUTE, None)
    if isinstance(held, RootSites):
        return not held.open
    return PLANNED in vars(root) or any(isinstance(module, Sites) for module in root.modules())


def settle(root: nn.Module | None) -> None:
    """Close a plan that was made at the first call: its graphs come back with their markers now."""
    held = getattr(root, ATTRIBUTE, None)
    if isinstance(held, RootSites):
        held.open = False


_IN_PARTS: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # modules of which graphs are known that are not all


def says_all(gm: fx.GraphModule, root: nn.Module | None, draft: Draft) -> bool:
    """Tell whether a graph without sites is worth a word: other graphs of the same model may have some.

    It is where a connection is left alone only because a break cuts the forward that it stands in.
    """
    if root is not None and is_in_parts(gm):
        _IN_PARTS.add(root)
    part = is_in_parts(gm) or any(root is module for whole in list(_IN_PARTS) for module in whole.modules())
    return not part or any(rejection.reason == BROKEN for rejection in draft.rejections)


def draft_frame(gm: fx.GraphModule, root: nn.Module | None, config: Config) -> Draft:
    """Plan the sites of one graph of a model that was not upgraded.

    Raises:
        LazyUpgradeError: there is no module to keep the plan, or it is wrapped for distributed training.
    """
    draft = number([plan_graph(without_markers(gm), config, Stack.of(root), is_in_parts(gm))], config)
    if draft.plan.sites and root is None:
        raise LazyUpgradeError(
            "torch.compile was given a function, or Dynamo broke the model's forward, so there is no module to keep the"
            " plan; call mhc_compile.upgrade(model, args) first"
        )
    if draft.plan.sites and isinstance(root, fx.GraphModule):
        raise LazyUpgradeError(
            "a GraphModule cannot keep markers (copying or recompiling it would drop them); use"
            " mhc_compile.rewrite(graph_module, args), which returns a rewritten graph"
        )
    names = {cls.__name__ for module in root.modules() for cls in type(module).__mro__} if root is not None else set()
    wrapper = next((name for name in _WRAPPERS if name in names), None)
    if draft.plan.sites and wrapper:
        raise LazyUpgradeError(
            f"the model is wrapped in {wrapper} already, so parameters created now would be neither sharded nor"
            " synchronised; call mhc_compile.upgrade(model, args) before wrapping it"
        )
    return draft


def first_call(gm: fx.GraphModule, root: nn.Module, plan: ModelPlan) -> Callable[..., Any]:
    """Return code that runs the graph as it is and registers the sites; the next call is captured with their markers.

    Not earlier: Dynamo makes its guards after the backend returns, and they must see the classes from before.
    """
    keep_to(root)
    plain = checkpoints.run_eagerly(without_markers(gm))
    pending = [plan]

    def run(*inputs: Any) -> Any:
        if pending:
            register(root, pending.pop(), extend=True)
            warnings.warn(
                f"mhc created the parameters of {len(plan.sites)} hyper-connections at this first call: an optimizer"
                " built before does not hold them (build it now from mhc_compile.param_groups(model, lr,"
                " weight_decay)), and this one call ran the original graph. Call mhc_compile.upgrade(model, args)"
                " first to avoid both",
                MHCWarning,
                stacklevel=2,
            )
        return plain.forward(*inputs)

    return run
