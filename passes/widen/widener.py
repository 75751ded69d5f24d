"""Emits the mhc IR site by site."""

from __future__ import annotations

import dataclasses
import operator
from collections import defaultdict
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
from mhc_compile.passes.bind_sites import Bindings
from mhc_compile.passes.graph import ir, optable, provenance, views
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.order import Order, stable_topological_sort
from mhc_compile.passes.graph.walk import between, operands, value
from mhc_compile.passes.widen.widened import Crossing, Widened

_OPS = torch.ops.mhc


class Widener:
    """Emits the sites in program order, each new node right behind the node of the plain graph that it stands for."""

    def __init__(self, gm: fx.GraphModule, request: Request, results: Results) -> None:
        """Prepare to rewrite the planned sites, of which there is one at least."""
        self.graph, self.config, self.n = gm.graph, request.config, request.config.streams
        self.plan, facts = results[Plan], results[GraphFacts]
        self.gives = request.carries and len(results[Bindings].by_name) != request.sites_of_model
        self.order = facts.order
        inputs = gm.graph.find_nodes(op="placeholder")
        self.inputs, self.last_input = {node: i for i, node in enumerate(inputs)}, inputs[-1]
        self.tail: dict[fx.Node, fx.Node] = {}  # the last node emitted behind a node
        self.regions: defaultdict[int, dict[fx.Node, fx.Node]] = defaultdict(dict)
        self.inflow: dict[fx.Node, fx.Node] = {}  # a graph input -> the input with its streams
        self.sums: dict[fx.Node, PlacedSite] = {}
        self.site: PlacedSite = self.plan.sites[0]
        self.readers = {site.residual.total: self._readers(site) for site in self.plan.sites}
        self.places = Order(facts)
        self.disordered = False

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
        if self.disordered:
            stable_topological_sort(self.graph)
        return self._crossings()

    def _crossings(self) -> Widened:
        """Return what is left of the plan, in facts that need no nodes."""
        sites = self.plan.sites

        def crossing(tensor: int, site: PlacedSite, lifts: tuple[fx.Node, ...] = ()) -> Crossing:
            phi = self.inputs.get(_bound(site).parameters.phi)
            lifted = any(optable.name(node) not in optable.VIEW for node in lifts)
            return Crossing(tensor, site.residual.name, phi, site.residual.axis, lifted)

        first = {site.start: site for site in reversed(sites) if site.carried}
        fresh = [site for site in sites if site.facts.starts and site.inflow is not None]
        exits = self.plan.exits if self.gives else ()
        return Widened(
            sites=tuple(site.facts for site in sites),
            takes=tuple(crossing(self.inputs[node], first[node]) for node in self.inflow),
            gives=tuple(crossing(leaving.output, sites[leaving.site], leaving.lifts) for leaving in exits),
            starts=tuple(crossing(self.inputs[site.inflow], site) for site in fresh if site.inflow is not None),
        )

    def _readers(self, site: PlacedSite) -> dict[fx.Node, list[fx.Node]]:
        """Return who reads the carrier, or a node on its way, for the branch.

        What the carrier is made with besides the streams, such as a gate, stands before the site: it gets the readout.
        """
        held = dict.fromkeys((site.start, *site.lifts))
        before = between(site.start, (site.residual.carrier,), self.order)
        inside = between(site.start, site.residual.branches, self.order) - before - held.keys()
        return {node: [user for user in node.users if user in inside] for node in held}

    def _read(self) -> tuple[Any, Any]:
        """Bring the streams to the site, make its coefficients and let the branch read; return H_post and H_res."""
        site, config = self.site, self.config
        residual = site.residual
        self._enter()
        for node in site.lifts:
            self._lift(node)
        bound: Any = _bound(site).parameters
        parameters = signatures.Parameters(bound.phi, bound.alpha, bound.delta, bound.base)
        at, x = self._where_gradients_flow(residual.carrier), self.streams[residual.carrier]
        given = ir.args(Coefficients(x, parameters, MapOptions.of(config)))
        made = self._emit(at, _OPS.coefficients.default, *given)
        late = (self.order[each] > self.order[at] for each in vars(bound).values())  # under transforms of torch.func
        self.disordered |= any(late)
        pre, post, res = (
            self._emit(at, operator.getitem, made, position(CoefficientsResult, name))
            for name in ("h_pre", "h_post", "h_res")
        )
        for node, readers in self.readers[residual.total].items():
            users = [user for user in readers if node in user.all_input_nodes]  # another site may have been first
            if users:
                read = ir.args(Read(self.streams[node], pre, self.n))
                u = self._from_streams(at, node, self._emit(at, _OPS.read.default, *read))
            for user in users:
                user.replace_input_with(node, u)
                self.disordered |= self.order[user] < self.order[at]
        return post, res

    def _where_gradients_flow(self, carrier: fx.Node) -> fx.Node:
        """Return the carrier, or where it runs in no_grad, the first node behind it that runs as the sum does."""
        total = self.site.residual.total
        if self.places.same_mode(carrier, total):
            return carrier
        behind = (node for node in self.order if self.order[node] > self.order[carrier])
        return next(node for node in behind if self.places.same_mode(node, total))

    def _write(self, post: Any, res: Any) -> None:
        """Add the branch's output to the streams, in the dtype that the plain sum had."""
        residual = self.site.residual
        total, x = residual.total, self.streams[residual.carrier]
        kept, summed = value(residual.carrier), value(total)
        if kept is not None and summed is not None and kept.dtype != summed.dtype:
            x = self._method(total, "to", x, summed.dtype)
        terms = [_other(add, residual.carrier, residual.adds) for add in reversed(residual.adds)]
        f: Any = terms[0]
        for term in terms[1:]:
            f = self._emit(total, operator.add, f, term)
            f.meta["example_value"] = summed
        if optable.is_difference(total):
            f = self._method(total, "neg", f)
        f = self._place_last(total, f)
        self._flow(total, self._emit(total, _OPS.write.default, *ir.args(Write(x, f, post, res, self.n))))
        self.sums[total] = self.site

    def _enter(self) -> None:
        """Make the streams of the site's source, unless they are there."""
        source = self.site.start
        if source in self.streams:
            return
        if not self.site.carried:
            plain: Any = self._place_last(source, source)
            self._flow(source, self._emit(source, _OPS.expand.default, *ir.args(Expand(plain, self.n))))
            self.disordered |= source in self.sums  # of another region: its readout comes behind
            return
        if source not in self.inflow:
            with self.graph.inserting_after(self.last_input):
                self.last_input = self.inflow[source] = self.graph.placeholder(f"{source.name}_streams")
        self._flow(source, self.inflow[source])

    def _lift(self, node: fx.Node) -> None:
        """Apply an op to every stream: other operands get a stream axis to broadcast over, and their features last."""
        if node in self.streams:
            return
        axis = self.site.residual.axis

        def operand(arg: fx.Node) -> fx.Node:
            tensor = value(arg)
            if arg in self.streams or tensor is None or tensor.dim() == 0:
                found: fx.Node = self.streams.get(arg, arg)
                return found
            if axis != -1:
                ends = (axis, -1) if tensor.dim() >= -axis else None
                arg = self._method(node, "movedim", arg, *ends) if ends else self._method(node, "unsqueeze", arg, -1)
            alone = axis == -1 and tensor.dim() == 1
            return arg if alone else self._method(node, "unsqueeze", arg, -2)

        view = views.on_streams(node, self.n) if optable.name(node) in optable.VIEW else None
        if view is not None:
            method, more = view
            tensor, *_ = node.args
            streams: fx.Node = self.streams[tensor]  # type: ignore[index]  # a node
            made = self._new(node, lambda: self.graph.call_method(method, (streams, *more)))
        else:
            args, kwargs = fx.map_arg(node.args, operand), fx.map_arg(node.kwargs, operand)
            made = self._new(node, lambda: self.graph.create_node(node.op, node.target, args, kwargs))
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
                readout = ir.args(Readout(self.streams[node], self.n))
                out = self._from_streams(node, node, self._emit(node, _OPS.readout.default, *readout))
                for user in readers:
                    user.replace_input_with(node, out)
            if not node.users:
                self.graph.erase_node(node)

    def _flow(self, node: fx.Node, streams: fx.Node) -> None:
        """Remember the streams of a node; like every tensor in a graph of Dynamo's they have an example value."""
        self.streams[node] = streams
        plain = value(node)
        if plain is not None:
            last = plain.detach().movedim(self.site.residual.axis, -1)
            streams.meta["example_value"] = last.unsqueeze(-2).expand(*last.shape[:-1], self.n, last.shape[-1])

    def _from_streams(self, at: fx.Node, like: fx.Node, x: fx.Node) -> fx.Node:
        """Give what was read from streams the layout and the example value of the plain node."""
        plain, axis = value(like), self.site.residual.axis
        if plain is not None:
            x.meta["example_value"] = plain if axis == -1 else plain.detach().movedim(axis, -1)
        return x if axis == -1 else self._method(at, "movedim", x, -1, axis)

    def _place_last(self, at: fx.Node, x: fx.Node) -> fx.Node:
        """Move the features last, where the plain graph has them elsewhere."""
        axis = self.site.residual.axis
        return x if axis == -1 else self._method(at, "movedim", x, axis, -1)

    def _emit(self, at: fx.Node, target: Any, *args: Any) -> Any:
        """Create a node of an op; as an argument of the IR it stands for a tensor."""
        return self._new(at, lambda: self.graph.call_function(target, args))

    def _method(self, at: fx.Node, method: str, *args: Any) -> fx.Node:
        made = self._new(at, lambda: self.graph.call_method(method, args))
        given = value(args[0])
        if given is not None:
            made.meta["example_value"] = getattr(given.detach(), method)(*args[1:])
        return made

    def _new(self, at: fx.Node, make: Any) -> fx.Node:
        """Create a node behind `at` and what was emitted there before; it carries the site's name and origin."""
        anchor = self.last_input if at.op == "placeholder" else at
        before = self.tail.get(anchor, anchor)
        with self.graph.inserting_before(before.next):
            node: fx.Node = make()
        node.meta = provenance.inherited(self.site.residual.total) | {"mhc_site": self.site.residual.name}
        self.tail[anchor] = node
        return node


def _bound(site: PlacedSite) -> Binding:
    """Return the binding of a site, which widen cannot do without."""
    assert site.binding is not None  # PlanStreams bound it, since markers were there
    return site.binding


def _other(add: fx.Node, carrier: fx.Node, chain: tuple[fx.Node, ...]) -> fx.Node:
    """Return the operand of an add that does not hold the carrier."""
    a, b = operands(add)
    return b if a is carrier or a in chain else a
