"""Which residuals become sites, which of them share streams, and what is lifted in between."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import fx

from mhc_compile.config import Config
from mhc_compile.errors import PlanMismatchError, SiteNotFoundError
from mhc_compile.passes.base import Context, Exit, Plan, PlannedSite, Rejection, Residual
from mhc_compile.passes.graph import optable, views
from mhc_compile.passes.graph.aliases import overwritten
from mhc_compile.passes.graph.walk import between, value


@dataclasses.dataclass(frozen=True)
class PlanStreams:
    """Chain the sites: streams flow on where a carrier comes from an earlier sum by ops that act on each token alone.

    A graph without bindings is planned freely, by the config. A graph with bindings holds the markers of an upgraded
    model: it realises exactly the sites they name, or is an error.
    """

    name: ClassVar[str] = "plan-streams"
    rewrites: ClassVar[bool] = False

    def __call__(self, gm: fx.GraphModule, context: Context) -> None:
        """Fill `context.plan`."""
        if context.bindings is None:
            chosen, rejections = _select(context)
        else:
            chosen, rejections = _bound(context), ()
        origin = _origins(gm, {residual.total: residual.axis for residual in chosen})
        order = {node: i for i, node in enumerate(gm.graph.nodes)}
        sites = _chain(chosen, context, origin, order)
        context.plan = Plan(sites, _exits(gm, chosen, origin, order), context.findings.rejections + rejections)


def excluded(name: str, index: int, config: Config) -> bool:
    """Tell whether the config leaves the index-th site, of that name, alone."""
    included = any(fnmatchcase(name, glob) for glob in config.include)
    dropped = any(fnmatchcase(name, glob) for glob in config.exclude)
    return not included or dropped or index % config.every != 0


def _select(context: Context) -> tuple[list[Residual], tuple[Rejection, ...]]:
    chosen, rejections = [], []
    for index, residual in enumerate(context.findings.residuals):
        if excluded(residual.name, index, context.config):
            text = f"{residual.name} is left out by include, exclude or every"
            rejections.append(Rejection("excluded", True, text, residual.owner, residual.source, residual.total.name))
        else:
            chosen.append(residual)
    return chosen, tuple(rejections)


def _bound(context: Context) -> list[Residual]:
    bindings = context.bindings or {}
    chosen = [residual for residual in context.findings.residuals if residual.name in bindings]
    for name in sorted(set(bindings) - {residual.name for residual in chosen}):
        owner = name.rpartition(".")[0]
        near = [f"{r.source} ({r.reason})" for r in context.findings.rejections if r.owner == owner and r.residual]
        cause = f"what stands there now: {', '.join(near)}" if near else "its add is not in this graph"
        raise SiteNotFoundError(
            f"site {name!r} is in the plan, but its residual add was not found in this graph: {cause}. Either a graph"
            " break or a fused call cuts the branch from its add (TORCH_LOGS=graph_breaks shows breaks; for"
            " nn.TransformerEncoder call torch.backends.mha.set_fastpath_enabled(False)), or this call takes another"
            " path through the model than the one that upgrade saw: remove(model) and upgrade with these arguments."
        )
    return chosen


def _chain(
    chosen: list[Residual], context: Context, origin: dict[fx.Node, fx.Node], order: dict[fx.Node, int]
) -> tuple[PlannedSite, ...]:
    index = {residual.total: i for i, residual in enumerate(chosen)}
    apart = _inside_others(chosen, origin, order)
    sites: list[PlannedSite] = []
    regions = 0
    for residual in chosen:
        found = None if residual.total in apart else origin.get(residual.carrier)
        inflow = found if found is not None and found.op == "placeholder" else None
        entry = None if context.bindings is None else context.bindings[residual.name].entry
        predecessor = index.get(found) if found is not None else None
        if predecessor is not None and (entry is True or sites[predecessor].residual.axis != residual.axis):
            predecessor = None
        carried = entry is False and predecessor is None
        if carried and inflow is None:
            raise PlanMismatchError(
                f"the streams of site {residual.name!r} were planned to come from the site before it, but in this"
                f" graph its carrier is made by {residual.root.format_node()!s}. This call takes another path than"
                " the one upgrade saw: remove(model) and upgrade with these arguments."
            )
        source = inflow if carried and inflow is not None else residual.root
        region = regions
        if predecessor is not None:
            source, region = sites[predecessor].residual.total, sites[predecessor].region
        regions = max(regions, region + 1)
        lifts = _lifts(source, residual.carrier, origin, order)
        sites.append(PlannedSite(residual, source, predecessor, lifts, carried, inflow, region))
    return tuple(sites)


def _inside_others(chosen: list[Residual], origin: dict[fx.Node, fx.Node], order: dict[fx.Node, int]) -> set[fx.Node]:
    """Return the sums inside the branch of another connection that continues the same streams: they start anew."""
    followers: dict[fx.Node, list[Residual]] = {}
    for residual in chosen:
        if residual.carrier in origin:
            followers.setdefault(origin[residual.carrier], []).append(residual)
    found: set[fx.Node] = set()
    for group in followers.values():
        for outer in group[1:]:
            inside = between(outer.root, outer.branches, order)
            found |= {inner.total for inner in group if inner.total in inside}
    return found


def _exits(
    gm: fx.GraphModule, chosen: list[Residual], origin: dict[fx.Node, fx.Node], order: dict[fx.Node, int]
) -> tuple[Exit, ...]:
    index = {residual.total: i for i, residual in enumerate(chosen)}
    (returned,) = gm.graph.find_nodes(op="output")[0].args
    if not isinstance(returned, (tuple, list)):
        returned = (returned,)
    exits = []
    for i, node in enumerate(returned):
        source = origin.get(node) if isinstance(node, fx.Node) else None
        if source in index:
            exits.append(Exit(i, index[source], _lifts(source, node, origin, order)))
    return tuple(exits)


def _origins(gm: fx.GraphModule, axes: dict[fx.Node, int]) -> dict[fx.Node, fx.Node]:
    """Map each node to the sum, else the graph input, that it is a token-wise function of."""
    origin: dict[fx.Node, fx.Node] = {}
    changing = overwritten(gm)
    for node in gm.graph.nodes:
        tensor = value(node)
        if node in axes:
            origin[node] = node
        elif node in changing or tensor is None or tensor.dim() < 2 or not tensor.is_floating_point():
            continue
        elif node.op == "placeholder":
            if not isinstance(tensor, torch.nn.Parameter):
                origin[node] = node
        else:
            source = _common(node, origin, axes)
            if source is not None and _fits(node, source, origin, axes.get(source, -1)):
                origin[node] = source
    return origin


def _common(node: fx.Node, origin: dict[fx.Node, fx.Node], axes: dict[fx.Node, int]) -> fx.Node | None:
    """Return the one sum, else the one graph input, behind the node's inputs."""
    sources = {origin[arg] for arg in node.all_input_nodes if arg in origin}
    sums = {source for source in sources if source in axes}
    chosen = sums or sources
    return next(iter(chosen)) if len(chosen) == 1 else None


def _fits(node: fx.Node, source: fx.Node, origin: dict[fx.Node, fx.Node], axis: int) -> bool:
    """Tell whether the node can be computed stream by stream, along features on `axis`."""
    made, first = value(node), value(source)
    given = [v for arg in node.all_input_nodes if origin.get(arg) is source and (v := value(arg)) is not None]
    if made is None or first is None or not given:
        return False
    if axis != -1:  # features are moved last inside a region, so nothing may name an axis
        same = made.shape == first.shape and optable.name(node) not in optable.REDUCE | optable.NORM
        return same and optable.is_liftable(node, first.dim())
    whole = next((v for v in given if v.shape[-1] == first.shape[-1]), given[0])
    if optable.name(node) in optable.VIEW:
        return whole.shape[-1] == first.shape[-1] and views.on_streams(node, 1) is not None
    return optable.is_liftable(node, whole.dim()) and made.shape in (whole.shape, (*whole.shape[:-1], 1))


def _lifts(
    source: fx.Node, carrier: fx.Node, origin: dict[fx.Node, fx.Node], order: dict[fx.Node, int]
) -> tuple[fx.Node, ...]:
    """Return the nodes on the ways from source (excluded) to carrier (included) that streams can take.

    From a sum or a graph input these are its token-wise functions; else the carrier is a cast or multiple of source.
    """
    inside = between(source, (carrier,), order)
    streaming = {node for node in inside if origin.get(node) is source} if origin.get(source) is source else inside
    found: set[fx.Node] = set()
    stack = [carrier]
    while stack:
        node = stack.pop()
        if node in streaming and node not in found:
            found.add(node)
            stack += node.all_input_nodes
    return tuple(sorted(found, key=order.__getitem__))
