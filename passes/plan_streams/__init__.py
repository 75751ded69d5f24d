"""Which residuals become sites, which of them share streams, and what is lifted in between."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import fx

from mhc_compile.config import Config
from mhc_compile.errors import PlanMismatchError
from mhc_compile.ops import limits
from mhc_compile.passes.base import (
    Binding,
    Exit,
    Findings,
    Place,
    PlacedSite,
    Plan,
    Rejection,
    Request,
    Residual,
    Results,
    SiteFacts,
)
from mhc_compile.passes.bind_sites import Bindings
from mhc_compile.passes.graph import checkpoints
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.layouts import sharded
from mhc_compile.passes.graph.walk import between, elements, value
from mhc_compile.passes.plan_streams.binding import bind
from mhc_compile.passes.plan_streams.flow import Flow
from mhc_compile.passes.plan_streams.places import Places
from mhc_compile.passes.reasons import reject


@dataclasses.dataclass(frozen=True)
class PlanStreams:
    """Chain the sites: streams flow on where a carrier comes from an earlier sum by ops that act on each token alone.

    The graph of a model without a plan is planned freely, by the config. That of an upgraded model realises exactly the
    sites that its markers name, or is an error. Streams pass by the sites of layers that this call skips, as LayerDrop
    and early exits do.
    """

    name: ClassVar[str] = "plan-streams"
    rewrites: ClassVar[bool] = False

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> Plan:
        """Return the sites, in program order, and what becomes none.

        Raises:
            SiteNotFoundError: a bound site's add is not in this graph, although its branch is.
            PlanMismatchError: the streams of a bound site come from elsewhere than planned, or a connection of the
                model is not in its plan.
        """
        findings, facts = results[Findings], results[GraphFacts]
        bound: dict[fx.Node, Binding] = {}
        left_out: tuple[Rejection, ...] = ()
        if request.planned or results[Bindings].by_call:
            bound = bind(gm, findings, results[Bindings], request)
            chosen = [residual for residual in findings.residuals if residual.total in bound]
        else:
            chosen, left_out = _select(findings, request)
        places = Places(facts)
        while True:  # without a site the streams of those behind it start elsewhere
            flow = Flow(facts, {residual.total: residual.axis for residual in chosen})
            sites, stuck = _chain(chosen, bound, flow, places, request)
            if not stuck:
                return Plan(sites, _exits(gm, chosen, flow), findings.rejections + left_out)
            left_out += tuple(_no_place(residual, bound.get(residual.total)) for residual in stuck)
            chosen = [residual for residual in chosen if residual not in stuck]


def excluded(name: str, index: int, config: Config) -> bool:
    """Tell whether the config leaves the index-th site, of that name, alone."""
    included = any(fnmatchcase(name, glob) for glob in config.include)
    dropped = any(fnmatchcase(name, glob) for glob in config.exclude)
    return not included or dropped or index % config.every != 0


def _select(findings: Findings, request: Request) -> tuple[list[Residual], tuple[Rejection, ...]]:
    """Choose the connections that the config includes, in forwards that are whole."""
    chosen, rejections = [], []
    for index, residual in enumerate(findings.residuals):
        left_out = excluded(residual.name, index, request.config)
        if left_out or residual.owner in request.barred:
            rejections.append(_reject(residual, "excluded" if left_out else "broken-forward", site=residual.name))
        else:
            chosen.append(residual)
    return chosen, tuple(rejections)


def _reject(residual: Residual, reason: str, **words: str) -> Rejection:
    add, spot = residual.total.name, residual.spot
    return reject(reason, owner=residual.owner, source=residual.source, node=add, spot=spot, **words)


def _no_place(residual: Residual, binding: Binding | None) -> Rejection:
    """Return why a connection is left alone whose ops can stand nowhere; a bound one cannot be left alone."""
    told = _reject(residual, "order" if sharded.placements(residual.total) is None else "overwritten-dtensor")
    if binding is None:
        return told
    raise PlanMismatchError(
        f"site {binding.title!r} cannot be computed in this graph: {told.message} ({residual.source}). When the model"
        " was upgraded, it could: remove(model) and upgrade it as it runs now."
    )


def _chain(
    chosen: list[Residual], bound: Mapping[fx.Node, Binding], flow: Flow, places: Places, request: Request
) -> tuple[tuple[PlacedSite, ...], list[Residual]]:
    """Let each site continue the streams of the site before it, where they reach it; return those without a place."""
    index = {residual.total: i for i, residual in enumerate(chosen)}
    apart = _inside_others(chosen, flow)
    fed = Counter(flow.comes_from.get(residual.carrier) for residual in chosen)
    sites: list[PlacedSite] = []
    stuck: list[Residual] = []
    regions = 0
    for residual in chosen:
        binding = bound.get(residual.total)
        found = None if residual.total in apart else flow.comes_from.get(residual.carrier)
        inflow = found if found is not None and found.op == "placeholder" else None
        predecessor = index.get(found) if found is not None else None
        if predecessor is not None and not _continues(sites[predecessor], residual, binding, request.config):
            predecessor = None
        shared = predecessor is None and fed[inflow] == 1 and _is_shared(residual, binding, inflow, flow, request)
        carried = shared or (predecessor is None and _is_carried(residual, binding, sites, request))
        start, region = residual.reads, regions
        if predecessor is not None:
            start, region = sites[predecessor].residual.total, sites[predecessor].region
        elif carried:
            start = _carried_in(residual, binding, inflow)
        regions = max(regions, region + 1)
        lifts = flow.lifts(start, residual.carrier)
        readers = places.readers(residual, start, lifts)
        place = places.of(residual, start, lifts, readers)
        if place is None or sharded.placements(residual.total) is not None:
            stuck.append(residual)
        site = PlacedSite(
            residual=residual,
            binding=binding,
            start=start,
            predecessor=predecessor,
            lifts=lifts,
            carried=carried,
            shared=shared,
            inflow=inflow,
            region=region,
            readers=readers,
            place=place or Place(residual.total),
            facts=_facts(residual, region, predecessor, carried, request),
        )
        sites.append(site)
    return tuple(sites), stuck


def _continues(before: PlacedSite, residual: Residual, binding: Binding | None, config: Config) -> bool:
    """Tell whether a site continues the streams of the site before it, by the plan where there is one.

    Raises:
        PlanMismatchError: the plan has the two the other way round.
    """
    if before.residual.axis != residual.axis or before.residual.call.model != residual.call.model:
        return False
    if binding is None or before.binding is None:
        return not config.splits(before.residual.name, residual.name)
    one, two = before.binding.known, binding.known
    if one is not None and two is not None and one.region != two.region:
        return False
    if one is not None and two is not None and one.k >= two.k:
        raise PlanMismatchError(
            f"site {two.name!r} runs behind site {one.name!r} here, but before it in the plan: layers were moved, or"
            " run again. remove(model) and upgrade it as it runs now"
        )
    return not binding.entry


def _is_carried(residual: Residual, binding: Binding | None, before: list[PlacedSite], request: Request) -> bool:
    """Tell whether streams must come to a site from another graph.

    Not to one whose region starts there; nor in a graph that is the whole model, if all sites before it in its region
    were skipped: then streams start there.
    """
    if binding is None or binding.entry:
        return False
    if not request.whole or binding.known is None:
        return True
    same = (site.binding for site in before if site.residual.call.model == residual.call.model)
    known = (each.known for each in same if each is not None)
    return any(each is not None and each.region == binding.known.region for each in known)


def _is_shared(
    residual: Residual, binding: Binding | None, inflow: fx.Node | None, flow: Flow, request: Request
) -> bool:
    """Tell whether this graph serves both layers with which streams start and layers to which they come.

    It does in a part of a model, if nothing stands between the site and the input that brings the streams.
    """
    if binding is None or binding.known is None or inflow is None or request.whole or not request.carries:
        return False
    lifts = flow.lifts(inflow, residual.carrier)
    return residual.reads in (inflow, *lifts) and all(lift.target in sharded.SAME for lift in lifts)


def _carried_in(residual: Residual, binding: Binding | None, inflow: fx.Node | None) -> fx.Node:
    """Return the graph input that brings the streams which the plan says are carried here."""
    if inflow is None:
        title = binding.title if binding is not None else residual.name
        raise PlanMismatchError(
            f"the streams of site {title!r} were planned to come from the site before it, but in this graph its"
            f" carrier is made by {residual.reads.format_node()!s}. This call takes another path than the one upgrade"
            " saw: remove(model) and upgrade with these arguments."
        )
    return inflow


def _facts(residual: Residual, region: int, predecessor: int | None, carried: bool, request: Request) -> SiteFacts:
    """Return what stays known of a site, and decide once whether a generated kernel runs it."""
    tensor = value(residual.total)
    assert tensor is not None  # a residual has a value
    config, channels = request.config, int(tensor.shape[residual.axis])
    unfit = None
    if tensor.device.type in request.devices:
        kind = tensor.device.type
        unfit = limits.why_not(config.streams, config.connection, config.projection, tensor.dtype, kind)
        lying = sharded.lies(residual.carrier)
        if lying is not None and sharded.divides(lying.parts, tensor.dim() + residual.axis):
            unfit = "features are sharded over processes"
    return SiteFacts(
        name=residual.name,
        region=region,
        predecessor=predecessor,
        starts=predecessor is None and not carried,
        channels=channels,
        tokens=elements(tensor) // max(channels, 1),
        dtype=tensor.dtype,
        checkpoint=tuple(checkpoints.tags(residual.total).items()),
        generated=tensor.device.type in request.devices and unfit is None,
        unfit=unfit or "",
    )


def _inside_others(chosen: list[Residual], flow: Flow) -> set[fx.Node]:
    """Return the sums inside the branch of another connection that continues the same streams: they start anew."""
    followers: dict[fx.Node, list[Residual]] = {}
    for residual in chosen:
        if residual.carrier in flow.comes_from:
            followers.setdefault(flow.comes_from[residual.carrier], []).append(residual)
    found: set[fx.Node] = set()
    for group in followers.values():
        for outer in group[1:]:
            inside = between(outer.reads, outer.branches, flow.order)
            found |= {inner.total for inner in group if inner.total in inside}
    return found


def _exits(gm: fx.GraphModule, chosen: list[Residual], flow: Flow) -> tuple[Exit, ...]:
    """Return the outputs that are token-wise functions of a site's sum."""
    index = {residual.total: i for i, residual in enumerate(chosen)}
    (returned,) = gm.graph.find_nodes(op="output")[0].args
    if not isinstance(returned, (tuple, list)):
        returned = (returned,)
    exits = []
    for i, node in enumerate(returned):
        source = flow.comes_from.get(node) if isinstance(node, fx.Node) else None
        if source in index:
            exits.append(Exit(i, index[source], flow.lifts(source, node)))
    return tuple(exits)
