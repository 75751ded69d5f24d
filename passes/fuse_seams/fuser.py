"""Fuses site by site, and notes what it leaves out."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

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
from mhc_compile.passes.fuse_seams import branch_norm, branch_tail
from mhc_compile.passes.fuse_seams.branch_norm import BranchNorm
from mhc_compile.passes.fuse_seams.branch_tail import BranchTail
from mhc_compile.passes.graph import ir, provenance
from mhc_compile.passes.graph.effects.order import Order
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.walk import source_of, value
from mhc_compile.passes.reasons import LEFT_OUT

_OPS = torch.ops.mhc
_COEFFICIENTS, _READ, _WRITE = _OPS.coefficients.default, _OPS.read.default, _OPS.write.default
_EXPAND, _READOUT = _OPS.expand.default, _OPS.readout.default


class LeftOut(NamedTuple):
    """A part of a branch that a site's fused op could do, and that stays outside of it.

    Attributes:
        site: its name.
        part: "norm", with which the branch begins, or "end", the pointwise ops that it ends with.
        reason: a key of `reasons.LEFT_OUT`.
        text: what the table says.
        source: "file.py:line" of the part.
    """

    site: str
    part: str
    reason: str
    text: str
    source: str


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

    def site(self, norm: BranchNorm) -> SiteInputs:
        """Return what enter and seam take of the site."""
        weight: Any = norm.weight
        shift: Any = norm.shift
        return SiteInputs(self.given.parameters, weight, shift)

    def options(self, norm: BranchNorm, equal: bool) -> Options:
        return Options(self.given.maps, norm.kind, norm.eps, equal)


class Fuser:
    """Fuses site by site, each op where the write stood, else where the coefficients did."""

    def __init__(self, gm: fx.GraphModule, sites: set[str], n: int, facts: GraphFacts) -> None:
        """Prepare to fuse the sites of these names, which have n streams."""
        self.graph, self.sites, self.n = gm.graph, sites, n
        self.places = Order(facts)
        self.left_out: list[LeftOut] = []

    def run(self) -> tuple[LeftOut, ...]:
        """Fuse what comes to a site, then what leaves; return what stays outside."""
        for node in self._found(_COEFFICIENTS):
            arrival = _arrival(node) if self._has_kernel(node) else None
            if arrival is not None and not self._seam(arrival):
                self._enter(arrival)
        for node in self._found(_WRITE):
            if self._has_kernel(node):
                self._leave(node)
        self._erase(node for node in self._found(_EXPAND) if not node.users)
        return tuple(self.left_out)

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

    def _norm(self, arrival: _Arrival, at: fx.Node) -> BranchNorm | None:
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
                if not norm.nodes:
                    self._leave_out(arrival.coefficients, "norm", branch_norm.why_left_out(arrival.read), arrival.read)
                return norm
        return None

    def _leave_out(self, site: fx.Node, part: str, reason: str | None, near: fx.Node) -> None:
        """Note that a norm or an end of a branch stays outside of the site's op."""
        if reason is not None:
            self.left_out.append(LeftOut(site.meta["mhc_site"], part, reason, LEFT_OUT[reason], source_of(near)))

    def _written(self, write: fx.Node) -> tuple[Any, bool, Written, BranchTail]:
        """Return the streams of a write, whether all are equal, what is written, and the branch's tail."""
        given = named(Write, write.args)
        output: Any = given.f
        x, equal = self._streams(given.x, write)
        tail = branch_tail.peel(output, lambda node: self._is_inside(node, write))
        why = branch_tail.why_left_out(tail, lambda node: self._is_inside(node, write))
        self._leave_out(write, "end", why, tail.f)
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

    def _arrive(self, made: fx.Node, kind: type[Any], arrival: _Arrival, norm: BranchNorm, at: fx.Node) -> None:
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
