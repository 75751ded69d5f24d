"""What lies between two branches becomes one op, for generated kernels to take over."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import fx

from mhc_compile.passes.base import Request, Results
from mhc_compile.passes.fuse_seams import branch_norm, branch_tail
from mhc_compile.passes.fuse_seams.branch_norm import Norm
from mhc_compile.passes.fuse_seams.branch_tail import Tail
from mhc_compile.passes.graph import provenance
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
        Y = write(X, f * gamma, post, res)     Y, u, post, res = seam(x, f, post, res, gamma, plain)
        pre, post, res = coefficients(Y)
        g = branch(norm(read(Y, pre)))         g = branch(u)
        Z = write(Y, g, post, res)             z = leave(Y, g, post, res)
        z = readout(Z)

    A norm of the read goes in where it alone consumes it (see `norms`), what a branch ends with where the write alone
    does (see `tails`). Between the parts of a tail the plain graph rounds in 16 bits, the op does not, as little as
    Inductor's kernels do; in front of a norm's weight it rounds where the plain graph does.

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
    """The coefficients of a site and the read of the same streams; `parts` holds H_pre, H_post and H_res."""

    coefficients: fx.Node
    parts: Mapping[Any, fx.Node]
    read: fx.Node

    @property
    def x(self) -> Any:
        return self.coefficients.args[0]


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
            x, plain = self._streams(arrival.x, at)
            made = self._emit(_OPS.enter.default, (x, *_site(arrival, norm), plain), at, at)
            self._arrive(made, 0, arrival, norm, at)

    def _seam(self, arrival: _Arrival) -> bool:
        """Fuse the write that made the streams with what reads them, if it can be."""
        at = arrival.x
        if (
            not isinstance(at, fx.Node)
            or at.target is not _WRITE
            or not self.places.can_merge(at, arrival.coefficients)
        ):
            return False
        norm = self._norm(arrival, at)
        if norm is None:
            return False
        written, plain, tail = self._written(at)
        made = self._emit(_OPS.seam.default, (*written, *_site(arrival, norm), plain), at, at)
        made.meta["mhc_site"] = arrival.coefficients.meta["mhc_site"]  # whose parameters it holds
        self._arrive(made, 1, arrival, norm, at)
        self._take(made, 0, at, at)
        self._erase((at, *tail.nodes))
        return True

    def _leave(self, at: fx.Node) -> None:
        """Fuse a write with the readout that alone reads it."""
        readout, *others = at.users or (None,)
        if readout is None or others or readout.target is not _READOUT or not self.places.can_merge(at, readout):
            return
        written, plain, tail = self._written(at)
        made = self._emit(_OPS.leave.default, (*written, self.n, plain), at, at)
        readout.replace_all_uses_with(made)
        self._erase((readout, at, *tail.nodes))

    def _norm(self, arrival: _Arrival, at: fx.Node) -> Norm | None:
        """Return what of a norm can be done at a node, None if not even the read; bring its operands there."""
        for norm in branch_norm.readings(arrival.read):
            if not self.places.can_merge(arrival.coefficients, arrival.read, *norm.nodes):
                continue
            behind = self.places.needed([*_parameters(arrival), *norm.operands], at)
            if behind is not None:
                for node in behind:
                    at.prepend(node)
                    self.places.place_beside(node, at)
                return norm
        return None

    def _written(self, write: fx.Node) -> tuple[tuple[Any, ...], bool, Tail]:
        """Return what seam and leave take of a write, whether its streams are all the same, and the branch's tail."""
        streams, f, post, res, _ = write.args
        assert isinstance(f, fx.Node)  # as widen made it
        x, plain = self._streams(streams, write)
        tail = branch_tail.peel(f, lambda node: self._is_inside(node, write))
        vectors = [self._flat(vector, write) for vector in (tail.offset, tail.scale)]
        return (x, tail.f, post, res, *vectors, tail.multiplier), plain, tail

    def _is_inside(self, node: fx.Node, write: fx.Node) -> bool:
        """Tell whether a node serves a branch's output alone, and what it reads is the same at the write."""
        read = {node, *node.all_input_nodes}
        return len(node.users) == 1 and self.places.overwritten.isdisjoint(read) and self.places.can_merge(node, write)

    def _flat(self, vector: fx.Node | None, at: fx.Node) -> fx.Node | None:
        """Return a vector without axes in front of its features."""
        tensor = value(vector) if vector is not None else None
        if vector is None or tensor is None or tensor.dim() == 1:
            return vector
        made = self._new(lambda: self.graph.call_method("reshape", (vector, (tensor.shape[-1],))), at, at)
        made.meta["example_value"] = tensor.detach().reshape(tensor.shape[-1])
        return made

    def _streams(self, x: Any, at: fx.Node) -> tuple[Any, bool]:
        """Return the tensor of which all streams are copies and True, else the streams and False."""
        plain = x.target is _EXPAND and self.places.same_mode(x, at)
        return (x.args[0] if plain else x), plain

    def _arrive(self, made: fx.Node, first: int, arrival: _Arrival, norm: Norm, at: fx.Node) -> None:
        """Let who read a site's results read those of the op, u being its result number `first`; erase the site."""
        self._take(made, first, norm.result, at)
        for part in (1, 2):
            if part in arrival.parts:
                self._take(made, first + part, arrival.parts[part], at)
        self._erase((arrival.coefficients, arrival.read, *arrival.parts.values(), *norm.nodes))

    def _take(self, made: fx.Node, index: int, node: fx.Node, at: fx.Node) -> None:
        """Let who read a node read a result of an op."""
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
    parts = {part.args[1]: part for part in coefficients.users}
    (read, *others) = parts[0].users if 0 in parts else (None,)
    if read is None or others or read.target is not _READ or read.args[0] is not coefficients.args[0]:
        return None
    return _Arrival(coefficients, parts, read)


def _parameters(arrival: _Arrival) -> list[Any]:
    """Return phi, alpha, delta and base."""
    return list(arrival.coefficients.args[1:5])


def _site(arrival: _Arrival, norm: Norm) -> tuple[Any, ...]:
    """Return what enter and seam take of a site, but for `plain`."""
    return (*_parameters(arrival), norm.weight, norm.shift, *arrival.coefficients.args[5:], norm.kind, norm.eps)
