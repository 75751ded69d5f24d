"""Which residuals become sites, which of them share streams, and what is lifted in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import fx

from mhc_compile.config import Config
from mhc_compile.errors import PlanMismatchError, SiteNotFoundError
from mhc_compile.ops import limits
from mhc_compile.passes.base import (
    Binding,
    Exit,
    Findings,
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
from mhc_compile.passes.graph.walk import between, value
from mhc_compile.passes.plan_streams.flow import Flow
from mhc_compile.passes.reasons import reject


@dataclasses.dataclass(frozen=True)
class PlanStreams:
    """Chain the sites: streams flow on where a carrier comes from an earlier sum by ops that act on each token alone.

    A graph without bindings is planned freely, by the config. A graph with bindings holds the markers of an upgraded
    model: it realises exactly the sites they name, or is an error.
    """

    name: ClassVar[str] = "plan-streams"
    rewrites: ClassVar[bool] = False

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> Plan:
        """Return the sites, in program order, and what becomes none.

        Raises:
            SiteNotFoundError: a bound site's add is not in this graph.
            PlanMismatchError: the streams of a bound site come from elsewhere than planned.
        """
        findings, bindings, facts = results[Findings], results[Bindings].by_name, results[GraphFacts]
        chosen, left_out = (_bound(findings, bindings), ()) if bindings else _select(findings, request)
        flow = Flow(facts, {residual.total: residual.axis for residual in chosen})
        sites = _chain(chosen, bindings, flow, request)
        return Plan(sites, _exits(gm, chosen, flow), findings.rejections + left_out)


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
            reason, add = "excluded" if left_out else "broken-forward", residual.total.name
            told = reject(reason, owner=residual.owner, source=residual.source, node=add, site=residual.name)
            rejections.append(told)
        else:
            chosen.append(residual)
    return chosen, tuple(rejections)


def _bound(findings: Findings, bindings: Mapping[str, Binding]) -> list[Residual]:
    """Return the connections that the markers name."""
    chosen = [residual for residual in findings.residuals if residual.name in bindings]
    for name in sorted(set(bindings) - {residual.name for residual in chosen}):
        binding = bindings[name]
        near = [f"{r.source} ({r.reason})" for r in findings.rejections if r.owner == binding.owner and r.residual]
        cause = f"what stands there now: {', '.join(near)}" if near else "its add is not in this graph"
        raise SiteNotFoundError(
            f"site {binding.title!r} is in the plan, but its residual add was not found in this graph: {cause}. Either"
            " a graph break or a fused call cuts the branch from its add (TORCH_LOGS=graph_breaks shows breaks; for"
            " nn.TransformerEncoder call torch.backends.mha.set_fastpath_enabled(False)), or this call takes another"
            " path through the model than the one that upgrade saw: remove(model) and upgrade with these arguments."
        )
    return chosen


def _chain(
    chosen: list[Residual], bindings: Mapping[str, Binding], flow: Flow, request: Request
) -> tuple[PlacedSite, ...]:
    """Let each site continue the streams of the site before it, where they reach it."""
    index = {residual.total: i for i, residual in enumerate(chosen)}
    apart = _inside_others(chosen, flow)
    sites: list[PlacedSite] = []
    regions = 0
    for residual in chosen:
        binding = bindings.get(residual.name)
        found = None if residual.total in apart else flow.comes_from.get(residual.carrier)
        inflow = found if found is not None and found.op == "placeholder" else None
        predecessor = index.get(found) if found is not None else None
        starts_anew = binding is not None and binding.entry
        if predecessor is not None and binding is None:
            starts_anew = request.config.splits(chosen[predecessor].name, residual.name)
        if predecessor is not None and (starts_anew or sites[predecessor].residual.axis != residual.axis):
            predecessor = None
        carried = binding is not None and not binding.entry and predecessor is None
        start, region = residual.reads, regions
        if predecessor is not None:
            start, region = sites[predecessor].residual.total, sites[predecessor].region
        elif carried:
            start = _carried_in(residual, binding, inflow)
        regions = max(regions, region + 1)
        site = PlacedSite(
            residual=residual,
            binding=binding,
            start=start,
            predecessor=predecessor,
            lifts=flow.lifts(start, residual.carrier),
            carried=carried,
            inflow=inflow,
            region=region,
            facts=_facts(residual, region, predecessor, carried, request),
        )
        sites.append(site)
    return tuple(sites)


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
        unfit = limits.why_not(config.streams, config.connection, config.projection, tensor.dtype)
    return SiteFacts(
        name=residual.name,
        region=region,
        predecessor=predecessor,
        starts=predecessor is None and not carried,
        channels=channels,
        tokens=_elements(tensor) // max(channels, 1),
        dtype=tensor.dtype,
        checkpoint=tuple(checkpoints.tags(residual.total).items()),
        generated=tensor.device.type in request.devices and unfit is None,
        unfit=unfit or "",
    )


def _elements(tensor: torch.Tensor) -> int:
    """Return the number of elements; of symbolic sizes that of the traced run."""
    number = tensor.numel()
    return int(number.node.hint) if isinstance(number, torch.SymInt) else int(number)


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
