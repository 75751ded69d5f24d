"""From the graphs of a captured run to the plan of a model: regions across graphs, and every site's place."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, fx, nn

from mhc_compile.capture.model_run import Captured, CapturedGraph
from mhc_compile.capture.owners import Stack
from mhc_compile.codegen.runtime.support import support
from mhc_compile.config import Config
from mhc_compile.passes import ANALYSIS, Plan, Rejection, Request
from mhc_compile.passes.base import PlacedSite, Residual, Spot, site_name
from mhc_compile.passes.find_residuals.naming import distinct
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
    before: Residual | None
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
        rejections=(*draft.rejections, *_not_compiled(captured, model)),
        cuts=(*draft.cuts, *broken_forwards(captured.graphs, plans), *torn(captured, plans)),
        memory=planned(plans, config, (site.name for site in draft.plan.sites)),
    )


def _not_compiled(captured: Captured, model: nn.Module) -> list[Rejection]:
    """Return a row for each function that Dynamo runs as it is and that adds something."""
    return [
        reject(
            "not-compiled",
            owner=skip.owner(model),
            source=skip.broken.source,
            function=f"{skip.function} ({os.path.basename(skip.file)}:{skip.line})",
            why=skip.broken.reason,
        )
        for skip in captured.skipped
        if skip.adds()
    ]


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
    held: dict[tuple[str, Spot], _Chain] = {}
    meetings: Meetings[_Chain] = Meetings(graphs, config)
    for g, plan in enumerate(plans):
        local: dict[int, _Chain] = {}
        for site in plan.sites:
            where = _where(site.residual)
            if where in held:  # the same code, compiled again: one site for both
                local[site.region] = held[where]
                continue
            chain, before, starts = local.get(site.region), None, False
            if chain is None:
                came = meetings.enter(g, site)
                starts = bool(graphs) and not meetings.brings_streams(g, site)
                if came is None:
                    chains.append(chain := [])
                else:
                    before, chain = came[0], came[1]
                local[site.region] = chain
            if site.predecessor is not None:
                before = plan.sites[site.predecessor].residual
            chain.append(_Linked(site, before, starts))
            held[where] = chain
        for leaving in plan.exits:
            end = plan.sites[leaving.site]
            meetings.leave(g, leaving, end.residual, local[end.region])
    whole = [chain for chain in chains if len(chain) > 1]
    rejections += [_single(chain[0].site) for chain in chains if len(chain) == 1]
    return Draft(
        plan=_with_heads(ModelPlan(config, tuple(_placed(whole)), _left_out(rejections))),
        rejections=tuple(rejections),
        cuts=tuple(meetings.close()),
    )


def _placed(chains: Sequence[_Chain]) -> Iterator[SitePlan]:
    """Give every site its place and its name: two graphs may have the same label for two places of an owner."""
    residuals = [linked.site.residual for chain in chains for linked in chain]
    labels = distinct([(residual.owner, residual.label) for residual in residuals])
    named = {_where(residual): label for residual, label in zip(residuals, labels, strict=True)}
    for region, chain in enumerate(chains):
        for k, linked in enumerate(chain):
            yield _place(linked, region, k, len(chain), named)


def _with_heads(plan: ModelPlan) -> ModelPlan:
    """Give a head to every site that no other one continues, where the readout is learned."""
    if plan.config.readout != "learned":
        return plan
    continued = plan.successors
    return dataclasses.replace(
        plan, sites=tuple(dataclasses.replace(site, head=not continued[site.name]) for site in plan.sites)
    )


def _left_out(rejections: Sequence[Rejection]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for rejection in rejections:
        if rejection.spot is not None:
            found.setdefault(rejection.owner, []).append(str(rejection.spot))
    return {owner: tuple(dict.fromkeys(spots)) for owner, spots in found.items()}


def _where(residual: Residual) -> tuple[str, Spot]:
    return residual.owner, residual.spot


def _single(site: PlacedSite) -> Rejection:
    residual = site.residual
    reason = "skip-scaled-alone" if residual.learned else "single-site-region"
    node = residual.total.name
    return reject(reason, owner=residual.owner, source=residual.source, node=node, spot=residual.spot)


def _place(linked: _Linked, region: int, k: int, length: int, labels: Mapping[tuple[str, Spot], str]) -> SitePlan:
    residual = linked.site.residual
    tensor = value(residual.total)
    label, before = labels[_where(residual)], linked.before
    return SitePlan(
        name=site_name(residual.owner, label),
        owner=residual.owner,
        label=label,
        kind=residual.kind,
        adds=len(residual.adds),
        source=residual.source,
        shape=tuple(int(size) for size in tensor.shape) if isinstance(tensor, Tensor) else (),
        axis=residual.axis,
        region=region,
        k=k,
        length=length,
        predecessor=site_name(before.owner, labels[_where(before)]) if before is not None else None,
        lifts=tuple(_lift_name(node) for node in linked.site.lifts),
        starts=linked.starts,
        spot=str(residual.spot),
    )


def _lift_name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
