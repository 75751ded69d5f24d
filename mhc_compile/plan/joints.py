"""Where a captured run passes from graph to graph: which regions go on, which end, which connections fall apart."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor, fx, nn

from mhc_compile.capture.frames import Break
from mhc_compile.capture.model_run import Captured, CapturedGraph
from mhc_compile.config import Config
from mhc_compile.passes import Plan
from mhc_compile.passes.base import Exit, PlacedSite, Residual
from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import value
from mhc_compile.passes.reasons import CUTS

T = TypeVar("T")
BROKEN = "broken-forward"


@dataclasses.dataclass(frozen=True)
class Cut:
    """A place where a region, or a connection, is cut between graphs.

    Attributes:
        kind: "region" (it goes on in another graph, or could have), "branch" (a connection's add stands in another
            graph than its branch), "forward" (a module whose forward breaks, so that its sites cannot be marked).
        name: the sites before and behind the cut, or the module that owns the connection.
        source: "file.py:line" of the user's code that broke the graph, where it is known.
        carries: True where streams are handed on.
        reason: what broke the graph, as Dynamo says, or what else ends the region.
    """

    kind: str
    name: str
    source: str
    carries: bool
    reason: str


def broken_forwards(graphs: Sequence[CapturedGraph], plans: Sequence[Plan]) -> list[Cut]:
    """Return the modules that hold such connections, each with the first break."""
    found: dict[str, Cut] = {}
    for g, plan in enumerate(plans):
        for owner in (rejection.owner for rejection in plan.rejections if rejection.reason == BROKEN):
            broken = graphs[g].ended or nearest(graphs, g)
            found.setdefault(owner, Cut("forward", owner or "the model", broken.source, False, broken.reason))
    return list(found.values())


def nearest(graphs: Sequence[CapturedGraph], before: int) -> Break:
    """Return the last break in front of a graph, else what made Dynamo leave the code around it alone."""
    broken = next((graph.ended for graph in reversed(graphs[:before]) if graph.ended is not None), None)
    if broken is not None:
        return broken
    apart = graphs[before].apart if before < len(graphs) else None
    return Break(CUTS["apart"]) if apart is None else Break(f"{CUTS['apart']}: {apart.reason}", apart.source)


@dataclasses.dataclass
class _Left(Generic[T]):
    """A tensor that leaves a graph with streams: whose they are, and to what they belong."""

    residual: Residual
    belongs: T
    entered: bool = False


class Meetings(Generic[T]):
    """Follows tensors from graph to graph, in the order of their first call."""

    def __init__(self, graphs: Sequence[CapturedGraph], config: Config) -> None:
        self.graphs, self.config = graphs, config
        self.cuts: list[Cut] = []
        self._left: dict[int, _Left[T]] = {}
        self._alone: list[tuple[int, Residual, int]] = []

    def leave(self, g: int, leaving: Exit, residual: Residual, belongs: T) -> None:
        """Remember that an output of a graph carries the streams of a site."""
        if self.graphs:
            self._left[id(self.graphs[g].outputs[leaving.output])] = _Left(residual, belongs)

    def enter(self, g: int, site: PlacedSite) -> tuple[Residual, T] | None:
        """Return the site whose streams enter a graph for another site, and to what they belong."""
        found = self._left.get(self._entering(g, site))
        if found is None:
            if site.inflow is not None and g > 0:
                self._alone.append((g, site.residual, len(self._left)))
            return None
        found.entered = True
        before, after = found.residual, site.residual
        why = "" if before.axis == after.axis else CUTS["axis"]
        why = CUTS["split"] if self.config.splits(before.name, after.name) else why
        self._cut(before, after, g, not why, why)
        return None if why else (before, found.belongs)

    def brings_streams(self, g: int, site: PlacedSite) -> bool:
        """Tell whether what enters a graph for a site is a tensor that carries streams."""
        return self._entering(g, site) in self._left

    def close(self) -> list[Cut]:
        """Return all cuts: also those where a tensor left and another one, made of it outside of graphs, came in."""
        for g, residual, known in self._alone:
            waiting = [left for left in list(self._left.values())[:known] if not left.entered]
            if waiting and _width(waiting[-1].residual) == _width(residual):
                waiting[-1].entered = True
                self._cut(waiting[-1].residual, residual, g, False, CUTS["anew"])
        return self.cuts

    def _cut(self, before: Residual, after: Residual, g: int, carries: bool, why: str) -> None:
        broken = nearest(self.graphs, g)
        reason = f"{why}; {broken.reason}" if why else broken.reason
        self.cuts.append(Cut("region", f"{before.name} -> {after.name}", broken.source, carries, reason))

    def _entering(self, g: int, site: PlacedSite) -> int:
        """Return the id of the tensor that the site's carrier came in as."""
        if not self.graphs or not self.graphs[g].inputs:
            return 0
        inputs = self.graphs[g].gm.graph.find_nodes(op="placeholder")
        return id(self.graphs[g].inputs[inputs.index(site.inflow)]) if site.inflow in inputs else 0


def _width(residual: Residual) -> int:
    tensor = value(residual.total)
    return int(tensor.shape[residual.axis]) if tensor is not None else 0


class _Lineage:
    """Which tensors between graphs are made from which, through graphs: a bit for each of them."""

    def __init__(self) -> None:
        self.bit: dict[int, int] = {}
        self.above: dict[int, int] = {}  # by id of a tensor
        self.worked: dict[int, int] = {}  # of these, those with real work in between

    def sweep(
        self, gm: fx.GraphModule, inputs: Sequence[Any], outputs: Sequence[Any]
    ) -> tuple[dict[fx.Node, int], dict[fx.Node, int]]:
        """Follow a call of a graph, and keep what its outputs are made from.

        Returns:
            By node, the tensors that it is made from by way of another graph and with real work in between; the bits
            of the inputs.
        """
        above: dict[fx.Node, int] = {}
        worked: dict[fx.Node, int] = {}
        own: dict[fx.Node, int] = {}
        for node, given in zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=True):
            above[node], worked[node] = self.above.get(id(given), 0), self.worked.get(id(given), 0)
            if isinstance(given, Tensor) and not isinstance(given, nn.Parameter):
                own[node] = self.bit.setdefault(id(given), 1 << len(self.bit))
        crossing, crossed = dict(above), dict(worked)
        for node in gm.graph.nodes:
            if node in crossing:
                continue
            add = optable.name(node) == "add"  # what an add only passes on is no part of it, as a mask of scores
            sources, works = optable.sources(node), optable.works(node)
            above[node] = _union(above.get(arg, 0) | (0 if add else own.get(arg, 0)) for arg in sources)
            crossing[node] = _union(crossing.get(arg, 0) for arg in sources)
            worked[node] = above[node] if works else _union(worked.get(arg, 0) for arg in sources)
            crossed[node] = crossing[node] if works else _union(crossed.get(arg, 0) for arg in sources)
        for node, made in zip(_returned(gm), outputs, strict=True):
            if isinstance(node, fx.Node) and node.op != "placeholder":
                self.above[id(made)], self.worked[id(made)] = above[node], worked[node]
        return crossed, own


def torn(captured: Captured, plans: Sequence[Plan]) -> list[Cut]:
    """Return the connections whose add reads a branch from another graph, where its carrier was."""
    lineage, cuts, seen = _Lineage(), [], set[int]()
    for graph, inputs, outputs in captured.calls:
        worked, own = lineage.sweep(graph.gm, inputs, outputs)
        g = next(i for i, each in enumerate(captured.graphs) if each is graph)
        nodes = {node.name: node for node in graph.gm.graph.nodes} if g not in seen else {}
        seen.add(g)
        for rejection in plans[g].rejections:
            node = nodes.get(rejection.node)
            if rejection.residual or node is None or not optable.is_add(node):
                continue
            a, b = node.args[:2]
            if any(worked.get(f, 0) & own.get(_root(x), 0) for x, f in ((a, b), (b, a))):
                broken = nearest(captured.graphs, g)
                place = f"{rejection.owner or 'the model'}, {os.path.basename(rejection.source)}"
                cuts.append(Cut("branch", place, broken.source, False, broken.reason))
    return cuts


def _root(node: Any) -> Any:
    """Return what a node is a cast or a constant multiple of."""
    while optable.name(node) in optable.CAST | {"mul", "contiguous"}:
        tensors = [arg for arg in node.args if isinstance(arg, fx.Node) and value(arg) is not None]
        if len(tensors) != 1:
            return node
        node = tensors[0]
    return node


def _union(bits: Any) -> int:
    result = 0
    for each in bits:
        result |= each
    return result


def _returned(gm: fx.GraphModule) -> Sequence[Any]:
    returned: Any = gm.graph.find_nodes(op="output")[0].args[0]
    return returned if isinstance(returned, (tuple, list)) else (returned,)
