"""From the graphs of a captured run to the plan of a model: regions across graphs, and every site's place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor, fx, nn

from mhc_compile.capture.model_run import Captured, CapturedGraph
from mhc_compile.capture.owners import Stack
from mhc_compile.codegen.runtime.support import support
from mhc_compile.config import Config
from mhc_compile.passes import ANALYSIS, Plan, Rejection, Request
from mhc_compile.passes.base import PlacedSite
from mhc_compile.passes.graph import walk
from mhc_compile.passes.graph.walk import value
from mhc_compile.passes.reasons import reject
from mhc_compile.passes.runner import run
from mhc_compile.plan.joints import Cut, Meetings, broken_forwards, torn
from mhc_compile.plan.memory import Memory, planned
from mhc_compile.plan.model_plan import ModelPlan, SitePlan

VERSION = 1


@dataclasses.dataclass(frozen=True)
class _Linked:
    """A site of a region that may span graphs: the site whose streams it continues, or whether it starts some."""

    site: PlacedSite
    before: str | None
    starts: bool


_Chain = list[_Linked]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """A plan drawn from every graph of a captured run.

    Attributes:
        plan: the sites.
        rejections: the other adds, each with its reason.
        cuts: where regions or connections are cut between graphs.
        memory: what training would keep of the streams.
    """

    plan: ModelPlan
    rejections: tuple[Rejection, ...]
    cuts: tuple[Cut, ...]
    memory: Memory = dataclasses.field(default_factory=Memory)


def draw(captured: Captured, model: nn.Module, config: Config) -> Draft:
    """Plan every graph, link regions where one graph's output is another's input, and number the sites."""
    plans = []
    for graph in captured.graphs:
        devices = support(config.kernels, walk.devices(graph.gm)).types
        plans.append(plan_graph(graph.gm, config, Stack.of(model, graph.root), graph.in_parts, devices))
    draft = number(plans, config, captured.graphs)
    return dataclasses.replace(
        draft,
        cuts=(*draft.cuts, *broken_forwards(captured.graphs, plans), *torn(captured, plans)),
        memory=planned(plans, config, (site.name for site in draft.plan.sites)),
    )


def plan_graph(
    gm: fx.GraphModule,
    config: Config,
    namer: Stack,
    in_parts: bool = False,
    devices: frozenset[str] = frozenset(),
) -> Plan:
    """Run the analysis passes on a graph (its adds are respelt in place).

    Args:
        gm: a graph of Dynamo's, without markers.
        config: what to build.
        namer: tells where nodes come from.
        in_parts: True where a graph break cuts the forward that the graph belongs to. Dynamo then compiles the graph
            apart from the markers in front of it, so connections in this very forward are left alone.
        devices: the types of device whose sites would run generated kernels.
    """
    barred = frozenset({namer.root} if in_parts else ())
    return run(ANALYSIS, gm, Request(config=config, namer=namer, barred=barred, devices=devices))[Plan]


def number(plans: list[Plan], config: Config, graphs: Sequence[CapturedGraph] = ()) -> Draft:
    """Turn per-graph plans into one: join regions, drop those of a single site, give every site its place."""
    rejections = [rejection for plan in plans for rejection in plan.rejections]
    chains: list[_Chain] = []
    meetings: Meetings[_Chain] = Meetings(graphs, config)
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
    sites: list[SitePlan] = []
    for chain in chains:
        if len(chain) < 2:
            rejections.append(_single(chain[0].site))
            continue
        region = len({site.region for site in sites})
        sites += [_place(linked, region, k, len(chain)) for k, linked in enumerate(chain)]
    return Draft(plan=ModelPlan(config, tuple(sites)), rejections=tuple(rejections), cuts=tuple(meetings.close()))


def _single(site: PlacedSite) -> Rejection:
    residual = site.residual
    reason = "skip-scaled-alone" if residual.learned else "single-site-region"
    return reject(reason, owner=residual.owner, source=residual.source, node=residual.total.name)


def _place(linked: _Linked, region: int, k: int, length: int) -> SitePlan:
    residual = linked.site.residual
    tensor = value(residual.total)
    return SitePlan(
        name=residual.name,
        owner=residual.owner,
        label=residual.label,
        kind=residual.kind,
        adds=len(residual.adds),
        source=residual.source,
        shape=tuple(int(size) for size in tensor.shape) if isinstance(tensor, Tensor) else (),
        axis=residual.axis,
        region=region,
        k=k,
        length=length,
        predecessor=linked.before,
        lifts=tuple(_lift_name(node) for node in linked.site.lifts),
        starts=linked.starts,
    )


def _lift_name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
