"""Emits the mhc IR site by site."""

from __future__ import annotations

import dataclasses
import operator
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import fx

from mhc_compile.ops import signatures
from mhc_compile.ops.signatures import (
    Coefficients,
    CoefficientsResult,
    Expand,
    MapOptions,
    Read,
    Readout,
    Write,
    position,
)
from mhc_compile.passes.base import Binding, PlacedSite, Plan, Request, Results
from mhc_compile.passes.graph import ir, optable, views
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.layouts import sharded
from mhc_compile.passes.graph.walk import operands, value
from mhc_compile.passes.widen.emitter import Emitter
from mhc_compile.passes.widen.head import read_by_head
from mhc_compile.passes.widen.layouts import settle
from mhc_compile.passes.widen.places import early_lifts, moved_nodes, turned_regions
from mhc_compile.passes.widen.processes import Processes
from mhc_compile.passes.widen.widened import Crossing, Widened

_OPS = torch.ops.mhc


class Widener:
    """Emits the sites in program order; what is the user's stays where it is."""

    def __init__(self, gm: fx.GraphModule, request: Request, results: Results) -> None:
        """Prepare to rewrite the planned sites, of which there is one at least."""
        self.graph, self.config, self.n = gm.graph, request.config, request.config.streams
        self.plan, facts = results[Plan], results[GraphFacts]
        self.gives = request.carries and not request.whole
        self.order = facts.order
        self.emit = Emitter(gm.graph, self.plan.sites[0])
        self.inputs = {node: i for i, node in enumerate(gm.graph.find_nodes(op="placeholder"))}
        self.regions: defaultdict[int, dict[fx.Node, fx.Node]] = defaultdict(dict)
        self.inflow: dict[fx.Node, fx.Node] = {}  # a graph input -> the input with its streams
        self.sums: dict[fx.Node, PlacedSite] = {}
        self.processes = {site.residual.total: Processes.of(site) for site in self.plan.sites}
        self.early = early_lifts(self.plan, self.order)
        self.moved = moved_nodes(self.plan, self.order)
        self.overwritten = facts.overwritten
        self.turned = turned_regions(self.plan)
        self.turned_reads: list[fx.Node] = []

    @property
    def site(self) -> PlacedSite:
        """The site that is rewritten."""
        return self.emit.site

    @site.setter
    def site(self, site: PlacedSite) -> None:
        self.emit.site = site

    @property
    def streams(self) -> dict[fx.Node, Any]:
        """Map nodes of the plain graph to their streams in the site's region; where one ends, another may start."""
        return self.regions[self.site.region]

    def run(self) -> Widened:
        """Rewrite site by site, then serve the other readers and clean up."""
        for site in self.plan.sites:
            self.site = site
            self._write(*self._read())
        if self.gives:
            self._give()
        self._serve()
        settle(self.graph, self.turned_reads, self.overwritten)
        return self._crossings()

    def _crossings(self) -> Widened:
        """Return what is left of the plan, in facts that need no nodes."""
        sites = self.plan.sites

        def crossing(tensor: int, site: PlacedSite, lifts: tuple[fx.Node, ...] = ()) -> Crossing:
            phi = self.inputs.get(_bound(site).parameters.phi)
            lifted = any(optable.name(node) not in optable.VIEW | optable.SPREAD for node in lifts)
            return Crossing(tensor, site.residual.name, phi, site.residual.axis, lifted, site.shared)

        first = {site.start: site for site in reversed(sites) if site.carried}
        fresh = [site for site in sites if site.facts.starts and site.inflow is not None]
        exits = self.plan.exits if self.gives else ()
        return Widened(
            sites=tuple(site.facts for site in sites),
            takes=tuple(crossing(self.inputs[node], first[node]) for node in self.inflow),
            gives=tuple(crossing(leaving.output, sites[leaving.site], leaving.lifts) for leaving in exits),
            starts=tuple(crossing(self.inputs[site.inflow], site) for site in fresh if site.inflow is not None),
        )

    def _read(self) -> tuple[Any, Any]:
        """Bring the streams to the site, make its coefficients and let the branch read; return H_post and H_res."""
        site, config = self.site, self.config
        residual = site.residual
        self._enter()
        for node in site.place.moved:
            if node in self.moved:  # not for another site
                self.emit.move(node, self.moved.pop(node))
        for node in site.lifts:
            self._lift(node)
        bound: Any = _bound(site).parameters
        late = vars(bound).values()  # no inputs but nodes, where a transform of torch.func wraps parameters
        at, x = max((site.place.behind, *late), key=self.order.__getitem__), self.streams[residual.carrier]
        made = self._coefficients(at, x, vars(bound).values(), MapOptions.of(config))
        pre, post, res = (
            self.emit.op(at, operator.getitem, made, position(CoefficientsResult, name))
            for name in ("h_pre", "h_post", "h_res")
        )
        for node, readers in site.readers.items():
            users = [user for user in readers if node in sharded.reads(user)]  # another site may have been first
            if users:
                read = ir.args(Read(self.streams[node], pre, self.n))
                u = self._from_streams(at, node, self.emit.op(at, _OPS.read.default, *read))
            for user in users:
                sharded.redirect(user, node, u)
        return post, res

    def _coefficients(self, at: fx.Node, x: Any, parameters: Iterable[fx.Node], maps: MapOptions) -> Any:
        """Emit coefficients of the site's streams."""
        given, processes = list[Any](parameters), self.processes[self.site.residual.total]
        if processes is not None:
            given = [*processes.parameters(self.emit, at, given)]
        made = Coefficients(x, signatures.Parameters(*given), maps)
        if processes is not None and processes.have_features:
            return processes.coefficients(self.emit, at, made)
        return self.emit.op(at, _OPS.coefficients.default, *ir.args(made))

    def _write(self, post: Any, res: Any) -> None:
        """Add the branch's output to the streams, in the dtype that the plain sum had."""
        residual = self.site.residual
        total, x = residual.total, self.streams[residual.carrier]
        kept, summed = value(residual.carrier), value(total)
        if kept is not None and summed is not None and kept.dtype != summed.dtype:
            x = self.emit.method(total, "to", x, summed.dtype)
        terms = [_other(add, residual.carrier, residual.adds) for add in reversed(residual.adds)]
        f: Any = terms[0]
        for term in terms[1:]:
            f = self.emit.op(total, operator.add, f, term)
            f.meta["example_value"] = summed
        if optable.is_difference(total):
            f = self.emit.method(total, "neg", f)
        f = self._place_last(total, f)
        self._flow(total, self.emit.op(total, _OPS.write.default, *ir.args(Write(x, f, post, res, self.n))))
        self.sums[total] = self.site

    def _enter(self) -> None:
        """Make the streams of the site's source, unless they are there."""
        source = self.site.start
        if source in self.streams:
            return
        if not self.site.carried:
            plain: Any = self._place_last(source, source)
            self._flow(source, self.emit.op(source, _OPS.expand.default, *ir.args(Expand(plain, self.n))))
            return
        if source not in self.inflow:
            self.inflow[source] = self.emit.input(f"{source.name}_streams")
        self._flow(source, self.inflow[source])

    def _lift(self, node: fx.Node) -> None:
        """Apply an op to every stream: other operands get a stream axis to broadcast over, and their features last."""
        if node in self.streams:
            return
        if node.target in sharded.SAME:
            self.streams[node] = self.streams[node.all_input_nodes[0]]
            return
        axis, at = self.site.residual.axis, self.early.get((self.site.region, node), node)
        processes = self.processes[self.site.residual.total]

        def operand(arg: fx.Node) -> fx.Node:
            tensor = value(arg)
            if arg in self.streams or tensor is None or tensor.dim() == 0:
                found: fx.Node = self.streams.get(arg, arg)
                return found
            arg = processes.operand(self.emit, at, arg) if processes is not None else arg
            if axis != -1:
                ends = (axis, -1) if tensor.dim() >= -axis else None
                arg = (
                    self.emit.method(at, "movedim", arg, *ends) if ends else self.emit.method(at, "unsqueeze", arg, -1)
                )
            alone = axis == -1 and tensor.dim() == 1
            return arg if alone else self.emit.method(at, "unsqueeze", arg, -2)

        view = views.on_streams(node, self.n) if optable.name(node) in optable.VIEW else None
        if view is not None:
            method, more = view
            tensor, *_ = node.args
            streams: fx.Node = self.streams[tensor]  # type: ignore[index]  # a node
            made = self.emit.new(at, lambda: self.graph.call_method(method, (streams, *more)))
        else:
            args, kwargs = fx.map_arg(node.args, operand), fx.map_arg(node.kwargs, operand)
            made = self.emit.new(at, lambda: self.graph.create_node(node.op, node.target, args, kwargs))
        if optable.name(node) in optable.REDUCE:
            optable.count_from_the_end(made)
        self._flow(node, made)

    def _give(self) -> None:
        """Return the streams of outputs that end in a sum, behind the graph's own outputs."""
        output = self.graph.find_nodes(op="output")[0]
        extra = []
        for leaving in self.plan.exits:
            before = self.plan.sites[leaving.site]
            self.site = dataclasses.replace(before, start=before.residual.total, predecessor=leaving.site)
            for node in leaving.lifts:
                self._lift(node)
            end = leaving.lifts[-1] if leaving.lifts else before.residual.total
            extra.append(self.streams[end])
        (returned,) = output.args
        output.args = ((*cast("tuple[fx.Node, ...]", returned), *extra),)

    def _serve(self) -> None:
        """From the end: erase sums and lifted ops that nobody reads; who still reads a sum gets the readout."""
        sites = self.plan.sites
        plain = {node for site in sites for node in (*site.residual.adds, *site.lifts)}
        for node in sorted(plain, key=self.order.__getitem__, reverse=True):
            if node.users and node in self.sums:
                self.site = self.sums[node]
                readers = list(node.users)
                at = self._behind_the_write(node)
                out = self._from_streams(at, node, self._read_out(at, self.streams[node]))
                for user in readers:
                    user.replace_input_with(node, out)
            if not node.users:
                self.graph.erase_node(node)

    def _read_out(self, at: fx.Node, x: Any) -> Any:
        """Read the site's streams out: by its head, else as their mean."""
        head = _bound(self.site).head
        if head is not None:
            return read_by_head(self.emit, at, x, head, self.config, self._coefficients)
        return self.emit.op(at, _OPS.readout.default, *ir.args(Readout(x, self.n)))

    def _behind_the_write(self, total: fx.Node) -> fx.Node:
        """Return where to read a sum out: behind all that was put behind it, unless something there reads it."""
        at_once = any(self.emit.is_behind(user, total) for user in total.users)
        write: fx.Node = self.streams[total]
        return write if at_once else total

    def _flow(self, node: fx.Node, streams: fx.Node) -> None:
        """Remember the streams of a node; like every tensor in a graph of Dynamo's they have an example value."""
        self.streams[node] = streams
        plain = value(node)
        if plain is not None:
            last = sharded.held(plain.detach()).movedim(self.site.residual.axis, -1)
            streams.meta["example_value"] = last.unsqueeze(-2).expand(*last.shape[:-1], self.n, last.shape[-1])

    def _from_streams(self, at: fx.Node, like: fx.Node, x: fx.Node) -> fx.Node:
        """Give what was read from streams the layout and the example value of the plain node."""
        plain, axis = value(like), self.site.residual.axis
        if plain is not None:
            x.meta["example_value"] = plain if axis == -1 else plain.detach().movedim(axis, -1)
        made = x if axis == -1 else self.emit.method(at, "movedim", x, -1, axis)
        if self.site.region in self.turned:
            self.turned_reads.append(made)
        return made

    def _place_last(self, at: fx.Node, x: fx.Node) -> fx.Node:
        """Move the features last, where the plain graph has them elsewhere."""
        axis = self.site.residual.axis
        return x if axis == -1 else self.emit.method(at, "movedim", x, axis, -1)


def _bound(site: PlacedSite) -> Binding:
    """Return the binding of a site, which widen cannot do without."""
    assert site.binding is not None  # PlanStreams bound it, since markers were there
    return site.binding


def _other(add: fx.Node, carrier: fx.Node, chain: tuple[fx.Node, ...]) -> fx.Node:
    """Return the operand of an add that does not hold the carrier."""
    a, b = operands(add)
    return b if a is carrier or a in chain else a
