"""What lies between two branches becomes one op, for generated kernels to take over."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import fx

from mhc_compile.ops import signatures
from mhc_compile.ops.signatures import (
    Coefficients,
    CoefficientsResult,
    Enter,
    EnterResult,
    Expand,
    Leave,
    Options,
    Read,
    Seam,
    SeamResult,
    SiteInputs,
    Write,
    Written,
    named,
    position,
)
from mhc_compile.passes.base import Request, Results
from mhc_compile.passes.fuse_seams import branch_norm, branch_tail
from mhc_compile.passes.fuse_seams.branch_norm import Norm
from mhc_compile.passes.fuse_seams.branch_tail import Tail
from mhc_compile.passes.graph import ir, provenance
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.order import Order
from mhc_compile.passes.graph.walk import value
from mhc_compile.passes.widen import Widened

_OPS = torch.ops.mhc
_COEFFICIENTS, _READ, _WRITE = _OPS.coefficients.default, _OPS.read.default, _OPS.write.default
_EXPAND, _READOUT = _OPS.expand.default, _OPS.readout.default


@dataclasses.dataclass(frozen=True)
class FuseSeams:
    """The ops between two branches become `enter`, `seam` or `leave` (see `ops.seams`).

    Before:                                    After:
        X = expand(x)
        pre, post, res = coefficients(X)       u, post, res = enter(x, plain)
        f = branch(norm(read(X, pre)))         f = branch(u)
        Y = write(X, f * gamma, post, res)     Y, u, post, res = seam(x, f, post, res, gamma, equal)
        pre, post, res = coefficients(Y)
        g = branch(norm(read(Y, pre)))         g = branch(u)
        Z = write(Y, g, post, res)             z = leave(Y, g, post, res)
        z = readout(Z)

    A norm of the read goes in where it alone consumes the read (see `branch_norm`); what a branch ends with goes in
    where the write alone consumes it (see `branch_tail`). Between the parts of a tail the plain graph rounds to 16
    bits; the op does not, and neither do Inductor's kernels. In front of a norm's weight the op rounds where the plain
    graph does.

    Who else reads the new streams, such as a readout or a second tower, reads the seam's: its backward adds their
    gradients. Left alone are sites whose coefficients and read are of different streams, writes in front of an op on
    the streams, and whatever a boundary cuts: a checkpoint, a graph, a change of the gradient mode, an operand that is
    made later than the op and cannot be made earlier. Only what kernels exist for is fused, and nothing inline.
    """

    name: ClassVar[str] = "fuse-seams"
    rewrites: ClassVar[bool] = True

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> None:
        """Rewrite the sites for which generated kernels exist."""
        sites = {site.name for site in results[Widened].sites if site.generated}
        if sites and not request.inline:
            _Fuser(gm, sites, request.config.streams, results[GraphFacts]).run()


@dataclasses.dataclass(frozen=True)
class _Arrival:
    """The coefficients of a site, the maps that are picked of them, by name, and the read of the same streams."""

    coefficients: fx.Node
    maps: Mapping[str, fx.Node]
    read: fx.Node

    @property
    def given(self) -> Coefficients:
        """What the coefficients are made of."""
        return named(Coefficients, self.coefficients.args)

    def site(self, norm: Norm) -> SiteInputs:
        """Return what enter and seam take of the site."""
        weight: Any = norm.weight
        shift: Any = norm.shift
        return SiteInputs(self.given.parameters, weight, shift)

    def options(self, norm: Norm, equal: bool) -> Options:
        return Options(self.given.maps, norm.kind, norm.eps, equal)


class _Fuser:
    """Fuses site by site, each op where the write stood, else where the coefficients did."""

    def __init__(self, gm: fx.GraphModule, sites: set[str], n: int, facts: GraphFacts) -> None:
        self.graph, self.sites, self.n = gm.graph, sites, n
        self.places = Order(facts)

    def run(self) -> None:
        """Fuse what comes to a site, then what leaves."""
        for node in self._found(_COEFFICIENTS):
            arrival = _arrival(node) if self._has_kernel(node) else None
            if arrival is not None and not self._seam(arrival):
                self._enter(arrival)
        for node in self._found(_WRITE):
            if self._has_kernel(node):
                self._leave(node)
        self._erase(node for node in self._found(_EXPAND) if not node.users)

    def _found(self, target: Any) -> list[fx.Node]:
        return self.places.sort(self.graph.find_nodes(op="call_function", target=target))

    def _has_kernel(self, node: fx.Node) -> bool:
        """Tell whether a generated kernel runs the site of a node."""
        return node.meta["mhc_site"] in self.sites

    def _enter(self, arrival: _Arrival) -> None:
        at = arrival.coefficients
        norm = self._norm(arrival, at)
        if norm is not None:
            x, equal = self._streams(arrival.given.x, at)
            given = Enter(x, arrival.site(norm), arrival.options(norm, equal))
            made = self._emit(_OPS.enter.default, ir.args(given), at, at)
            self._arrive(made, EnterResult, arrival, norm, at)

    def _seam(self, arrival: _Arrival) -> bool:
        """Fuse the write that made the streams with what reads them, if it can be."""
        at: Any = arrival.given.x
        if (
            not isinstance(at, fx.Node)
            or at.target is not _WRITE
            or not self.places.can_merge(at, arrival.coefficients)
        ):
            return False
        norm = self._norm(arrival, at)
        if norm is None:
            return False
        x, equal, written, tail = self._written(at)
        given = Seam(x, written, arrival.site(norm), arrival.options(norm, equal))
        made = self._emit(_OPS.seam.default, ir.args(given), at, at)
        made.meta["mhc_site"] = arrival.coefficients.meta["mhc_site"]  # whose parameters it holds
        self._arrive(made, SeamResult, arrival, norm, at)
        self._take(made, position(SeamResult, "x"), at, at)
        self._erase((at, *tail.nodes))
        return True

    def _leave(self, at: fx.Node) -> None:
        """Fuse a write with the readout that alone reads it."""
        readout, *others = at.users or (None,)
        if readout is None or others or readout.target is not _READOUT or not self.places.can_merge(at, readout):
            return
        x, equal, written, tail = self._written(at)
        given = Leave(x, written, self.n, equal)
        made = self._emit(_OPS.leave.default, ir.args(given), at, at)
        readout.replace_all_uses_with(made)
        self._erase((readout, at, *tail.nodes))

    def _norm(self, arrival: _Arrival, at: fx.Node) -> Norm | None:
        """Return what of a norm can be done at a node, None if not even the read; bring its operands there."""
        for norm in branch_norm.readings(arrival.read):
            if not self.places.can_merge(arrival.coefficients, arrival.read, *norm.nodes):
                continue
            parameters: list[Any] = [*arrival.given.parameters]
            behind = self.places.needed([*parameters, *norm.operands], at)
            if behind is not None:
                for node in behind:
                    at.prepend(node)
                    self.places.place_beside(node, at)
                return norm
        return None

    def _written(self, write: fx.Node) -> tuple[Any, bool, Written, Tail]:
        """Return the streams of a write, whether all are equal, what is written, and the branch's tail."""
        given = named(Write, write.args)
        output: Any = given.f
        x, equal = self._streams(given.x, write)
        tail = branch_tail.peel(output, lambda node: self._is_inside(node, write))
        f: Any = tail.f
        offset, scale = (self._flat(vector, write) for vector in (tail.offset, tail.scale))
        parts = signatures.Tail(offset, scale, tail.multiplier)
        return x, equal, Written(f, given.h_post, given.h_res, parts), tail

    def _is_inside(self, node: fx.Node, write: fx.Node) -> bool:
        """Tell whether a node serves a branch's output alone, and what it reads is the same at the write."""
        read = {node, *node.all_input_nodes}
        return len(node.users) == 1 and self.places.overwritten.isdisjoint(read) and self.places.can_merge(node, write)

    def _flat(self, vector: fx.Node | None, at: fx.Node) -> Any:
        """Return a vector without axes in front of its features."""
        tensor = value(vector) if vector is not None else None
        if vector is None or tensor is None or tensor.dim() == 1:
            return vector
        made = self._new(lambda: self.graph.call_method("reshape", (vector, (tensor.shape[-1],))), at, at)
        made.meta["example_value"] = tensor.detach().reshape(tensor.shape[-1])
        return made

    def _streams(self, x: Any, at: fx.Node) -> tuple[Any, bool]:
        """Return the tensor that all streams equal and True, else the streams and False."""
        equal = x.target is _EXPAND and self.places.same_mode(x, at)
        return (named(Expand, x.args).x if equal else x), equal

    def _arrive(self, made: fx.Node, kind: type[Any], arrival: _Arrival, norm: Norm, at: fx.Node) -> None:
        """Readers of the site's results now read the op's results; the site goes."""
        self._take(made, position(kind, "u"), norm.result, at)
        for name in ("h_post", "h_res"):
            if name in arrival.maps:
                self._take(made, position(kind, name), arrival.maps[name], at)
        self._erase((arrival.coefficients, arrival.read, *arrival.maps.values(), *norm.nodes))

    def _take(self, made: fx.Node, index: int, node: fx.Node, at: fx.Node) -> None:
        """Readers of a node now read a result of the op."""
        if node.users:
            node.replace_all_uses_with(self._emit(operator.getitem, (made, index), at, made))

    def _emit(self, target: Any, args: tuple[Any, ...], at: fx.Node, like: fx.Node) -> fx.Node:
        made = self._new(lambda: self.graph.call_function(target, args), at, like)
        provenance.give_value(made)
        return made

    def _new(self, make: Any, at: fx.Node, like: fx.Node) -> fx.Node:
        """Create a node in front of `at`, of the origin of another."""
        with self.graph.inserting_before(at):
            node: fx.Node = make()
        node.meta = provenance.inherited(like)
        self.places.place_beside(node, at)
        return node

    def _erase(self, nodes: Iterable[fx.Node]) -> None:
        for node in reversed(self.places.sort(nodes)):
            self.graph.erase_node(node)


def _arrival(coefficients: fx.Node) -> _Arrival | None:
    """Match coefficients with the one read of the same streams."""
    maps = dict(ir.results(coefficients, CoefficientsResult))
    (read, *others) = maps["h_pre"].users if "h_pre" in maps else (None,)
    if read is None or others or read.target is not _READ:
        return None
    arrival = _Arrival(coefficients, maps, read)
    return arrival if named(Read, read.args).x is arrival.given.x else None
