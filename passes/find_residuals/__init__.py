"""Which adds are residual connections, and why the others are not."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import fx

from mhc_compile.passes.base import Findings, Namer, Rejection, Request, Residual, Results, Spot
from mhc_compile.passes.find_residuals import describe
from mhc_compile.passes.find_residuals.naming import Places, distinct, label
from mhc_compile.passes.find_residuals.recurrences import Recurrences
from mhc_compile.passes.find_residuals.sums import Match, Sums
from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.walk import graph_of, nodes_within, operands, source_of, value
from mhc_compile.passes.reasons import reject


@dataclasses.dataclass(frozen=True)
class FindResiduals:
    """Every same-shape float add is a residual connection or gets a reason.

    An add is one if an operand, the carrier, is an ancestor of every other term of the (single-use) tree of adds, with
    real work in between. So is a difference whose branch has weights. What only the branches of a connection read is
    no ancestor of what comes after it: a mask that is added in every layer is an ancestor of later scores through
    nothing but these branches.
    """

    name: ClassVar[str] = "find-residuals"
    rewrites: ClassVar[bool] = False

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> Findings:
        """Return the connections, and a reason for every other add."""
        return _Finder(results[GraphFacts], request.namer).run()


class _Finder:
    """One sweep that matches sums, then a look at what the matches are to each other."""

    def __init__(self, facts: GraphFacts, namer: Namer) -> None:
        self.facts, self.namer = facts, namer
        self.order = facts.order
        self.told: dict[fx.Node, tuple[str, Match]] = {}  # sums that only look like connections
        self.spots: dict[fx.Node, Spot] = {}  # of whatever is a connection in this run, or could be one in another
        self.matches: list[Match] = []
        self.rejections: list[Rejection] = []

    def run(self) -> Findings:
        """Sweep the graph, then judge; once more where sums are none, since those hide what their branches read."""
        told: dict[Match, str] | None = None
        while told is None or told:
            self._sweep()
            told = Recurrences(self.facts, self.sums.ancestry).judge(self.matches)
            self.told |= {match.sum.total: (reason, match) for match, reason in told.items()}
        for half in self.sums.halves:
            if self.sums.is_reversible(half, self.matches):
                self.rejections = [r for r in self.rejections if r.node != half.name]
                self._reject(half, "reversible")
        self.matches.sort(key=lambda match: self.order[match.sum.total])
        residuals = self._residuals(self._sift())
        place = {node.name: i for node, i in self.order.items()}
        return Findings(tuple(residuals), tuple(sorted(self.rejections, key=lambda r: place[r.node])))

    def _sweep(self) -> None:
        self.sums, self.matches, self.rejections = Sums(self.facts), [], []
        self.places, self.spots = Places(self.facts.nodes, self.namer), {}
        bodies = {graph_of(node): node for node in reversed(self.facts.nodes) if node.op == "get_attr"}
        for node in self.facts.nodes:
            self.sums.ancestry.sweep(node)
            if (body := graph_of(node)) is not None and bodies[body] is node:
                self._look_inside(body, node)
            if node in self.sums.adds and node not in self.sums.inner:
                self._look(node)
            elif node in self.sums.differences:
                self._look_at_difference(node)
            elif optable.name(node) == "add":
                self._look_at_other(node)
            elif optable.name(node) == "lerp" and optable.terms_alike(node) is not None:
                self._look_at_interpolation(node)

    def _look(self, root: fx.Node) -> None:
        """Match the tree under a root, and what the match leaves of it."""
        waiting = [root]
        while waiting:
            add = waiting.pop()
            found = self.sums.match(add) if add not in self.told else None
            if add in self.told:
                self._tell(add)
            elif found is None and (inner := self.sums.wrapped(add, self.matches)) is not None:
                self._reject(add, "nested", source_of(inner.sum.total))
            elif found is None:
                self._reject(add, "pointwise-branch" if self.sums.is_related(add) else "no-skip")
            else:
                self._keep(found)
            waiting += reversed(self.sums.trees.below(found.sum.adds if found else (add,)))

    def _look_at_difference(self, node: fx.Node) -> None:
        found = self.sums.difference(node)
        if node in self.told:
            self._tell(node)
        elif found is None or any(found.branches[0] is match.sum.total for match in self.matches):
            return  # the trunk itself minus where it started, as in a loss
        elif any(optable.is_add(reader) for reader in found.branches[0].users):
            self._reject(node, "shared-branch")
        else:
            self._keep(found)

    def _look_at_interpolation(self, node: fx.Node) -> None:
        found = self.sums.interpolation(node)
        if node in self.told:
            self._tell(node)
        elif found is not None:
            self._keep(found)

    def _look_at_other(self, node: fx.Node) -> None:
        """Look at an add of integers or complex numbers, or of tensors that are not alike."""
        a, b = optable.operand_values(node)
        if a is None or b is None:
            return
        if not (a.is_floating_point() or b.is_floating_point()):
            self._reject(node, "complex" if a.is_complex() or b.is_complex() else "integer")
            return
        reason = self.sums.broadcasts(node)
        if reason:
            total, (x, y) = value(node), operands(node)
            full, part = (x, y) if total is not None and a.shape == total.shape else (y, x)
            self.spots[node] = self.places.spot(node, part if reason == "broadcast" else full)
            self._reject(node, reason)

    def _look_inside(self, body: fx.GraphModule, named: fx.Node) -> None:
        """Reject the adds of a graph that one op runs, such as torch.cond, or as a nested compile region."""
        op = next((str(user.target) for user in named.users), "")
        for node in nodes_within(body):
            made = value(node)
            if optable.is_add(node) and made is not None and made.dim() > 1:
                owner, where = self.namer.owner(node), source_of(node)
                self.rejections.append(reject("inside-op", owner=owner, source=where, node=named.name, function=op))

    def _tell(self, node: fx.Node) -> None:
        """Reject a sum that only looks like a connection; where there are fewer of it, it may not even be told."""
        reason, match = self.told[node]
        self.spots[node] = self.places.spot(node, match.branches[0])
        self._reject(node, reason)

    def _keep(self, match: Match) -> None:
        self.matches.append(match)
        self.spots[match.sum.total] = self.places.spot(match.sum.total, match.branches[0])
        # a gate on the skip is work on what it is made from, and no part of the trunk
        carrier = match.ultimate if match.reason == "gated-skip" else match.carrier
        self.sums.ancestry.carry_on(match.sum.total, carrier, match.branches)

    def _sift(self) -> list[Match]:
        """Return the matches that hold beside each other."""
        carriers = {match.carrier: match for match in self.matches} | {match.ultimate: match for match in self.matches}
        kept = []
        for match in self.matches:
            ends = [end for branch in match.branches for end in self.sums.skips.peel(branch)]
            again = next((carriers[end] for end in ends if end in carriers), None)
            if again is not None:
                self._reject(match.sum.total, "added-again", source_of(again.sum.total))
            elif match.reason:
                outer = self._around(match)
                inside = "gated-inside-branch" if match.reason == "gated-skip" else "inside-branch"
                self._reject(
                    match.sum.total,
                    inside if outer else match.reason,
                    source_of(outer.sum.total) if outer else "",
                )
            elif optable.is_nested(match.sum.total):
                self._reject(match.sum.total, "nested-tensor")
            elif self._is_overwritten(match):
                self._reject(match.sum.total, "in-place")
            else:
                kept.append(match)
        return self._disjoint(kept)

    def _is_overwritten(self, match: Match) -> bool:
        """Tell whether its tensors may change later; of a skip that an in-place op made, where another follows."""
        last = self.facts.last_changes
        skip = {node for node in self.sums.skips.peel(match.carrier) if last.get(node) is not node}
        return not self.facts.overwritten.isdisjoint({*match.sum.adds, *skip})

    def _around(self, match: Match) -> Match | None:
        """Return the connection in whose branch a sum stands that nothing carries on, such as content plus position.

        What a gate scales need not start from the same tensor as the connection does: it is a weighted sum.
        """
        if match.reason == "multi-stream" or self._continues(match, self.matches):
            return None
        gated = match.reason == "gated-skip"
        around = (m for m in self.matches if m.carrier is match.reads or (gated and not m.reason))
        return next((m for m in around if self._holds(m, match)), None)

    def _disjoint(self, matches: list[Match]) -> list[Match]:
        """Of connections that lie in each other and start from the same tensor, keep a chain, else the outer one."""
        by_ultimate: dict[fx.Node, list[Match]] = {}
        for match in matches:
            by_ultimate.setdefault(match.ultimate, []).append(match)
        dropped: set[fx.Node] = set()
        for group in by_ultimate.values():
            members = self.sums.ancestry.bits(match.sum.total for match in group)
            for i, outer in enumerate(group):
                if not members & self.sums.ancestry.within(outer.branches):
                    continue
                inner = next((m for m in group[:i] if m.sum.total not in dropped and self._holds(outer, m)), None)
                if inner is not None and self._continues(inner, matches):
                    dropped.add(outer.sum.total)
                    self._reject(outer.sum.total, "nested", source_of(inner.sum.total))
                elif inner is not None:
                    dropped.add(inner.sum.total)
                    self._reject(inner.sum.total, "inside-branch", source_of(outer.sum.total))
        return [m for m in matches if m.sum.total not in dropped and not self._is_gate(m, matches)]

    def _is_gate(self, match: Match, matches: list[Match]) -> bool:
        """Reject a skip scaled by a parameter inside a branch: the feedthrough `y + D x` of state-space layers."""
        if not self.sums.skips.is_learned(match.carrier, match.reads):
            return False
        above, bits = self.sums.ancestry.above, self.sums.ancestry.bits
        this = bits((match.sum.total,))
        for outer in matches:
            starts_before = above[match.carrier] & bits((outer.ultimate,))
            if (
                starts_before
                and self._holds(outer, match)
                and not (above[outer.carrier] | bits((outer.carrier,))) & this
            ):
                self._reject(match.sum.total, "skip-scaled")
                return True
        return False

    def _holds(self, outer: Match, inner: Match) -> bool:
        return bool(self.sums.ancestry.bits((inner.sum.total,)) & self.sums.ancestry.within(outer.branches))

    def _continues(self, inner: Match, matches: list[Match]) -> bool:
        """Tell whether another connection carries the inner one's sum on."""
        bit = self.sums.ancestry.bits((inner.sum.total,))
        above, worked = self.sums.ancestry.above, self.sums.ancestry.worked
        return any(m.ultimate is inner.sum.total or above[m.carrier] & ~worked[m.carrier] & bit for m in matches)

    def _residuals(self, matches: list[Match]) -> list[Residual]:
        found = []
        for match in matches:
            total, branches = match.sum.total, match.branches
            axis = describe.feature_axis(match.reads, branches, total, self.order)
            if axis is None:
                self._reject(total, "feature-axis")
                continue
            found.append((match, axis, self.namer.owner(total)))
        names = distinct([(owner, self._label(match, owner)) for match, _, owner in found])
        return [
            self._residual(match, axis, owner, name) for (match, axis, owner), name in zip(found, names, strict=True)
        ]

    def _label(self, match: Match, owner: str) -> str:
        return label(self.spots[match.sum.total].child, match.branches[0], owner, self.namer)

    def _residual(self, match: Match, axis: int, owner: str, name: str) -> Residual:
        total, branches, where = match.sum.total, match.branches, source_of(match.sum.total)
        chain = _on_the_way(match)
        for add in set(match.sum.adds).difference(chain):
            self._reject(add, "branch-sum", where)
        return Residual(
            total=total,
            carrier=match.carrier,
            reads=match.reads,
            branches=branches,
            adds=chain,
            kind=describe.kind(total, match.reads, branches, self.order),
            owner=owner,
            label=name,
            spot=self.spots[total],
            call=self.namer.call(total),
            source=where,
            axis=axis,
            learned=self.sums.skips.is_learned(match.carrier, match.reads),
        )

    def _reject(self, node: fx.Node, reason: str, other: str = "") -> None:
        owner, source = self.namer.owner(node), source_of(node)
        spot = self.spots.get(node)
        self.rejections.append(reject(reason, owner=owner, source=source, node=node.name, spot=spot, other=other))


def _on_the_way(match: Match) -> tuple[fx.Node, ...]:
    """Return the adds that have the carrier as a term below them."""
    found: set[fx.Node] = set()
    for add in reversed(match.sum.adds):  # those below come first
        if any(arg is match.carrier or arg in found for arg in operands(add)):
            found.add(add)
    return tuple(add for add in match.sum.adds if add in found)
