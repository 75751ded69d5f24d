"""Residual sums become sites: the graph in terms of the mhc IR."""

from __future__ import annotations

import dataclasses
import operator
from collections import defaultdict
from typing import Any, ClassVar, cast

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
from mhc_compile.passes.base import Context, PlannedSite
from mhc_compile.passes.graph import ir, optable, provenance, views
from mhc_compile.passes.graph.order import Places
from mhc_compile.passes.graph.walk import between, value

_OPS = torch.ops.mhc


@dataclasses.dataclass(frozen=True)
class Widen:
    """`s = x + f(x)` becomes `S = write(X, f(read(X)))`.

    Before:                          After:
        f = branch(x)                    X = expand(x)            (or the streams of the sum that x comes from)
        s = x + f                        pre, post, res = coefficients(X)
        y = head(s)                      f = branch(read(X, pre))
                                         S = write(X, f, post, res)
                                         y = head(readout(S))

    What feeds the branch reads H_pre x, what lies between two sums is applied to every stream, and every other reader
    of a sum gets the readout, also where it is the same op that the streams went through.
    """

    name: ClassVar[str] = "widen"
    rewrites: ClassVar[bool] = True

    def __call__(self, gm: fx.GraphModule, context: Context) -> None:
        """Rewrite the planned sites; each needs its binding."""
        if context.plan.sites:
            _Widener(gm, context).run()


class _Widener:
    """Emits the sites in program order, each new node right behind the node of the plain graph that it stands for."""

    def __init__(self, gm: fx.GraphModule, context: Context) -> None:
        self.graph, self.context, self.n = gm.graph, context, context.config.streams
        self.order: dict[fx.Node, int] = {node: i for i, node in enumerate(gm.graph.nodes)}
        self.last_input = gm.graph.find_nodes(op="placeholder")[-1]
        self.tail: dict[fx.Node, fx.Node] = {}  # the last node emitted behind a node
        self.regions: defaultdict[int, dict[fx.Node, fx.Node]] = defaultdict(dict)
        self.inflow: dict[fx.Node, fx.Node] = {}  # a graph input -> the input with its streams
        self.sums: dict[fx.Node, PlannedSite] = {}
        self.site: PlannedSite = context.plan.sites[0]
        self.readers = {site.residual.total: self._readers(site) for site in context.plan.sites}
        self.places = Places(gm)
        self.disordered = False

    @property
    def streams(self) -> dict[fx.Node, Any]:
        """Map nodes of the plain graph to their streams in the site's region; where one ends, another may start."""
        return self.regions[self.site.region]

    def run(self) -> None:
        """Rewrite site by site, then serve the other readers and clean up."""
        for site in self.context.plan.sites:
            self.site = site
            self._write(*self._read())
        if self.context.carry_out:
            self._give()
        self._serve()
        if self.disordered:
            stable_topological_sort(self.graph)

    def _readers(self, site: PlannedSite) -> dict[fx.Node, list[fx.Node]]:
        """Return who reads the carrier, or a node on its way, for the branch.

        What the carrier is made with besides the streams, such as a gate, stands before the site: it gets the readout.
        """
        held = dict.fromkeys((site.source, *site.lifts))
        before = between(site.source, (site.residual.carrier,), self.order)
        inside = between(site.source, site.residual.branches, self.order) - before - held.keys()
        return {node: [user for user in node.users if user in inside] for node in held}

    def _read(self) -> tuple[Any, Any]:
        """Bring the streams to the site, make its coefficients and let the branch read; return H_post and H_res."""
        site, config = self.site, self.context.config
        residual = site.residual
        self._enter()
        for node in site.lifts:
            self._lift(node)
        bound: Any = (self.context.bindings or {})[residual.name].parameters
        parameters = signatures.Parameters(bound.phi, bound.alpha, bound.delta, bound.base)
        at, x = self._where_gradients_flow(residual.carrier), self.streams[residual.carrier]
        given = ir.args(Coefficients(x, parameters, MapOptions.of(config)))
        made = self._emit(at, _OPS.coefficients.default, *given)
        pre, post, res = (
            self._emit(at, operator.getitem, made, position(CoefficientsResult, name))
            for name in ("h_pre", "h_post", "h_res")
        )
        for node, readers in self.readers[residual.total].items():
            users = [user for user in readers if node in user.all_input_nodes]  # another site may have been first
            if users:
                read = ir.args(Read(self.streams[node], pre, self.n))
                u = self._plain(at, node, self._emit(at, _OPS.read.default, *read))
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
        source = self.site.source
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
            self.context.takes.append(source)
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
            source: fx.Node = self.streams[node.args[0]]  # type: ignore[index]  # a view's first argument is the tensor
            made = self._new(node, lambda: self.graph.call_method(method, (source, *more)))
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
        for leaving in self.context.plan.exits:
            before = self.context.plan.sites[leaving.site]
            self.site = dataclasses.replace(before, source=before.residual.total, predecessor=leaving.site)
            for node in leaving.lifts:
                self._lift(node)
            end = leaving.lifts[-1] if leaving.lifts else before.residual.total
            extra.append(self.streams[end])
            self.context.gives.append(leaving.output)
        output.args = ((*cast("tuple[fx.Node, ...]", output.args[0]), *extra),)

    def _serve(self) -> None:
        """From the end: erase sums and lifted ops that nobody reads; who still reads a sum gets the readout."""
        sites = self.context.plan.sites
        plain = {node for site in sites for node in (*site.residual.adds, *site.lifts)}
        for node in sorted(plain, key=self.order.__getitem__, reverse=True):
            if node.users and node in self.sums:
                self.site = self.sums[node]
                readers = list(node.users)
                readout = ir.args(Readout(self.streams[node], self.n))
                out = self._plain(node, node, self._emit(node, _OPS.readout.default, *readout))
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

    def _plain(self, at: fx.Node, like: fx.Node, x: fx.Node) -> fx.Node:
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
        node.meta = provenance.origin(self.site.residual.total) | {"mhc_site": self.site.residual.name}
        self.tail[anchor] = node
        return node


def _other(add: fx.Node, carrier: fx.Node, chain: tuple[fx.Node, ...]) -> fx.Node:
    """Return the operand of an add that does not hold the carrier."""
    a, b = add.args[:2]
    other = b if a is carrier or a in chain else a
    assert isinstance(other, fx.Node)  # is_add saw two nodes
    return other


def stable_topological_sort(graph: fx.Graph) -> None:
    """Move each node that stands before one of its inputs right behind the last of them; others keep their order."""
    placed: set[fx.Node] = set()
    waiting: dict[fx.Node, list[fx.Node]] = {}
    queue = list(reversed(list(graph.nodes)))
    position = graph._root
    while queue:
        node = queue.pop()
        missing = next((arg for arg in node.all_input_nodes if arg not in placed), None)
        if missing is not None:
            waiting.setdefault(missing, []).append(node)
            continue
        position.append(node)
        position = node
        placed.add(node)
        queue += reversed(waiting.pop(node, []))
