"""From the graphs of a captured run to the plan of a model: regions across graphs, and every site's place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor, fx, nn

from mhc_compile.capture.model_run import Captured, CapturedGraph
from mhc_compile.capture.owners import Stack
from mhc_compile.codegen.runtime.support import support
from mhc_compile.config import Config
from mhc_compile.passes import ANALYSIS, Context, Plan, Rejection
from mhc_compile.passes.base import PlannedSite
from mhc_compile.passes.graph import walk
from mhc_compile.passes.graph.walk import value
from mhc_compile.passes.runner import run
from mhc_compile.plan.joints import Cut, Meetings, broken_forwards, torn, unmarkable
from mhc_compile.plan.memory import Memory, planned
from mhc_compile.plan.model_plan import ModelPlan, Site

VERSION = 1


@dataclasses.dataclass(frozen=True)
class _Linked:
    """A site of a region that may span graphs: the site whose streams it continues, or whether it starts some."""

    site: PlannedSite
    before: str | None
    starts: bool


_Chain = list[_Linked]


@dataclasses.dataclass
class Draft:
    """A plan in the making, from every graph of a captured run."""

    plan: ModelPlan
    rejections: tuple[Rejection, ...]
    cuts: tuple[Cut, ...]
    memory: Memory = dataclasses.field(default_factory=Memory)


def draw(captured: Captured, model: nn.Module, config: Config) -> Draft:
    """Plan every graph, link regions where one graph's output is another's input, and number the sites."""
    namers = [Stack.of(model, graph.root) for graph in captured.graphs]
    plans = [
        plan_graph(graph.gm, config, namer, graph.in_parts)
        for graph, namer in zip(captured.graphs, namers, strict=True)
    ]
    draft = number(plans, config, captured.graphs)
    draft.cuts += (*broken_forwards(captured.graphs, plans), *torn(captured, plans))
    devices = (support(config.kernels, walk.devices(graph.gm)).types for graph in captured.graphs)
    draft.memory = planned(zip(plans, devices, strict=True), config, (site.name for site in draft.plan.sites))
    return draft


def plan_graph(gm: fx.GraphModule, config: Config, namer: Stack, in_parts: bool = False) -> Plan:
    """Run the analysis passes on a graph (its adds are respelt in place).

    With `in_parts` a graph break cuts the forward that the graph belongs to: Dynamo then compiles it apart from the
    markers in front of it, so connections in this very forward are left alone.
    """
    context = Context(config, namer)
    run(ANALYSIS, gm, context)
    lost = {site.residual.name for site in context.plan.sites if in_parts and site.residual.owner == namer.root}
    if not lost:
        return context.plan
    context.config = dataclasses.replace(config, exclude=(*config.exclude, *sorted(lost)))
    adds = {site.residual.total.name for site in context.plan.sites if site.residual.name in lost}
    run(ANALYSIS, gm, context)
    told = [unmarkable(rejection) if rejection.node in adds else rejection for rejection in context.plan.rejections]
    return dataclasses.replace(context.plan, rejections=tuple(told))


def number(plans: list[Plan], config: Config, graphs: Sequence[CapturedGraph] = ()) -> Draft:
    """Turn per-graph plans into one: join regions, drop those of a single site, give every site its place."""
    rejections = [rejection for plan in plans for rejection in plan.rejections]
    chains: list[_Chain] = []
    meetings: Meetings[_Chain] = Meetings(graphs)
    for g, plan in enumerate(plans):
        local: dict[int, _Chain] = {}
        for site in plan.sites:
            chain, before, starts = local.get(site.region), None, False
            if chain is None:
                came = meetings.enter(g, site)
                starts = bool(graphs) and not meetings.brings_streams(g, site)
                if came is None:
                    chains.append(chain := [])
                else:
                    before, chain = came[0].name, came[1]
                local[site.region] = chain
            if site.predecessor is not None:
                before = plan.sites[site.predecessor].residual.name
            chain.append(_Linked(site, before, starts))
        for leaving in plan.exits:
            end = plan.sites[leaving.site]
            meetings.leave(g, leaving, end.residual, local[end.region])
    sites: list[Site] = []
    for chain in chains:
        if len(chain) < 2:
            rejections.append(_single(chain[0].site))
            continue
        region = len({site.region for site in sites})
        sites += [_place(linked, region, k, len(chain)) for k, linked in enumerate(chain)]
    return Draft(ModelPlan(config, tuple(sites)), tuple(rejections), tuple(meetings.close()))


def _single(site: PlannedSite) -> Rejection:
    residual = site.residual
    reason, message = "single-site-region", "stands alone: streams that start and end around one connection cannot mix"
    if residual.learned:
        reason, message = "skip-scaled", "a parameter scales the skip, and no other connection carries the sum on"
    return Rejection(reason, not residual.learned, message, residual.owner, residual.source, residual.total.name)


def _place(linked: _Linked, region: int, k: int, length: int) -> Site:
    residual = linked.site.residual
    tensor = value(residual.total)
    shape = tuple(int(size) for size in tensor.shape) if isinstance(tensor, Tensor) else ()
    lifts = tuple(_lift_name(node) for node in linked.site.lifts)
    return Site(
        residual.name, residual.owner, residual.label, residual.kind, len(residual.adds), residual.source,
        shape, residual.axis, region, k, length, linked.before, lifts, linked.starts,
    )  # fmt: skip


def _lift_name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
