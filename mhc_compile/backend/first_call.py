"""Without upgrade: the backend gives a model its parameters at the first compiled call.

`model.phase` says in which phases of a model a graph comes here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from mhc_compile.capture.frames import is_in_parts, serve_only
from mhc_compile.capture.graphs import without_markers
from mhc_compile.capture.owners import Stack
from mhc_compile.config import Config
from mhc_compile.errors import FirstCallError, warn
from mhc_compile.model.attach import attach_sites
from mhc_compile.model.phase import Phase, phase_of
from mhc_compile.passes.graph import checkpoints
from mhc_compile.plan.drafting import Draft, number, plan_graph
from mhc_compile.plan.joints import BROKEN
from mhc_compile.plan.model_plan import ModelPlan

_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")
# modules with a broken forward; kept here, since a module without sites must not be changed, not even by a mark
_in_parts: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def draft_frame(gm: fx.GraphModule, root: nn.Module | None, config: Config) -> Draft:
    """Plan the sites of one graph of a model that was not upgraded.

    Raises:
        FirstCallError: there is no module to keep the plan, or it is wrapped for distributed training.
    """
    draft = number([plan_graph(without_markers(gm), config, Stack.of(root), is_in_parts(gm))], config)
    if draft.plan.sites:
        _check_root(root)
    return draft


def _check_root(root: nn.Module | None) -> None:
    """Refuse a module that cannot get sites at a first call."""
    if root is None:
        raise FirstCallError(
            "torch.compile was given a function, or Dynamo broke the model's forward, so there is no module to keep the"
            " plan; call mhc_compile.upgrade(model, args) first"
        )
    if isinstance(root, fx.GraphModule):
        raise FirstCallError(
            "a GraphModule cannot keep markers (copying or recompiling it would drop them); use"
            " mhc_compile.rewrite(graph_module, args), which returns a rewritten graph"
        )
    names = {cls.__name__ for module in root.modules() for cls in type(module).__mro__}
    parallel: Any = nn.parallel.DistributedDataParallel._get_active_ddp_module()  # Dynamo compiles what it wraps
    if parallel is not None and any(module is root for module in parallel.modules()):
        names |= {cls.__name__ for cls in type(parallel).__mro__}
    wrapper = next((name for name in _WRAPPERS if name in names), None)
    if wrapper is not None:
        raise FirstCallError(
            f"the model is wrapped in {wrapper} already, so parameters created now would be neither sharded nor"
            " synchronised; call mhc_compile.upgrade(model, args) before wrapping it"
        )


def first_call(gm: fx.GraphModule, root: nn.Module, plan: ModelPlan) -> Callable[..., Any]:
    """Return code for a graph that runs as it is and then has its sites; the next call is captured with their markers.

    The sites are created when the code runs first, and not here: Dynamo makes its guards after the backend returns,
    and these must see the classes from before.

    Args:
        gm: the graph, left as it is.
        root: the module whose forward it is; the code serves this very module only.
        plan: the sites of the graph.
    """
    serve_only(root)
    original = checkpoints.run_eagerly(without_markers(gm))
    pending, kept = [plan], weakref.ref(root)  # Dynamo keeps this code, and the code must not keep the module

    def run(*inputs: Any) -> Any:
        module = kept()
        if pending and module is not None:
            attach_sites(module, pending.pop(), first_call=True)
            warn(
                f"mhc created the parameters of {len(plan.sites)} hyper-connections at this first call: an optimizer"
                " built before does not hold them (build it now from mhc_compile.param_groups(model, lr,"
                " weight_decay)), and this one call ran the original graph. Call mhc_compile.upgrade(model, args)"
                " first to avoid both"
            )
        return original.forward(*inputs)

    return run


def warn_nothing_found(gm: fx.GraphModule, root: nn.Module | None, draft: Draft) -> None:
    """Warn that a graph has no site, where that says something about the model."""
    if phase_of(root) is Phase.COLLECTING or not _worth_warning(gm, root, draft):
        return
    name = type(root).__name__ if root is not None else "the function"
    warn(
        f"mhc found nothing to rewrite in this graph of {name} ({len(draft.rejections)} adds looked at;"
        " mhc_compile.explain says why); it is compiled as it is"
    )


def _worth_warning(gm: fx.GraphModule, root: nn.Module | None, draft: Draft) -> bool:
    """Tell whether a graph without sites is worth a warning: where breaks cut the model, other graphs may have some.

    Then it is worth one only if a connection of this graph is left alone because a break cuts its forward.
    """
    if root is None and not any(node.meta.get("nn_module_stack") for node in gm.graph.nodes):
        return False  # of an optimizer, a metric
    in_parts = is_in_parts(gm)
    if in_parts and root is not None:
        _in_parts.add(root)
    part = in_parts or any(root is module for whole in list(_in_parts) for module in whole.modules())
    return not part or any(rejection.reason == BROKEN for rejection in draft.rejections)
