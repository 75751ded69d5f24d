"""Which adds are residual connections, and why the others are not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import ClassVar

from torch import fx

from mhc_compile.passes.base import Context, Findings, Rejection, Residual
from mhc_compile.passes.find_residuals import describe
from mhc_compile.passes.find_residuals.sums import Match, Sums, operands
from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.aliases import overwritten
from mhc_compile.passes.graph.walk import location

REASONS = {
    "no-skip": (False, "neither operand is computed from the other"),
    "pointwise-branch": (False, "one operand is computed from the other without any layer in between"),
    "branch-sum": (False, "sums branches of the connection that is completed at {other}"),
    "inside-branch": (False, "lies inside the branch of the connection at {other}, which starts from the same tensor"),
    "added-again": (False, "adds to a tensor that is itself carried on at {other}, such as positions to queries"),
    "shared-branch": (False, "what is subtracted is used elsewhere too: the rest that a quantiser or a trend leaves"),
    "skip-scaled": (False, "a parameter scales the skip inside another branch, as in state-space layers"),
    "multi-stream": (False, "mixes several streams already, as hyper-connections do"),
    "integer": (False, "adds integers"),
    "broadcast": (True, "the branch has fewer entries than the skip; write x + f(x).expand_as(x)"),
    "projection-shortcut": (True, "the skip passes through a layer of its own, so no stream continues"),
    "skip-reshaped": (True, "the skip is a slice, view or pool of what the branch reads"),
    "reversible": (True, "one half of a reversible pair: its branch reads the other half of the features only"),
    "in-place": (True, "overwrites a tensor that is read again or that belongs to the caller; write x = x + f(x)"),
    "nested": (True, "wraps connections that start from the same tensor, such as {other}; the inner ones are widened"),
    "feature-axis": (True, "no norm, linear or convolution in the branch tells which axis holds the features"),
}


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

    def __call__(self, gm: fx.GraphModule, context: Context) -> None:
        """Fill `context.findings`."""
        context.findings = _Finder(gm, context).run()


class _Finder:
    """One sweep that matches sums, then a look at what the matches are to each other."""

    def __init__(self, gm: fx.GraphModule, context: Context) -> None:
        self.context = context
        self.nodes = list(gm.graph.nodes)
        self.sums = Sums(self.nodes)
        self.order = self.sums.order
        self.overwritten = overwritten(gm)
        self.matches: list[Match] = []
        self.rejections: list[Rejection] = []

    def run(self) -> Findings:
        """Sweep the graph, then judge."""
        for node in self.nodes:
            self.sums.ancestry.sweep(node)
            if node in self.sums.adds and node not in self.sums.inner:
                self._look(node)
            elif node in self.sums.differences:
                self._look_at_difference(node)
            elif optable.name(node) == "add":
                self._look_at_other(node)
        for half in self.sums.halves:
            if self.sums.is_reversible(half, self.matches):
                self.rejections = [r for r in self.rejections if r.node != half.name]
                self._reject(half, "reversible")
        self.matches.sort(key=lambda match: self.order[match.sum.root])
        residuals = self._residuals(self._sift())
        place = {node.name: i for node, i in self.order.items()}
        return Findings(tuple(residuals), tuple(sorted(self.rejections, key=lambda r: place[r.node])))

    def _look(self, root: fx.Node) -> None:
        """Match the tree under a root, and what the match leaves of it."""
        found = self.sums.match(root)
        if found is None:
            related = self.sums.is_related(root)
            self._reject(root, "pointwise-branch" if related else "no-skip")
        else:
            self._keep(found)
        taken = found.sum.adds if found else (root,)
        for add in self.sums.tree(root).adds:
            below = [arg for parent in taken for arg in operands(parent)]
            if add not in taken and add in below:
                self._look(add)

    def _look_at_difference(self, node: fx.Node) -> None:
        found = self.sums.difference(node)
        if found is None or any(found.branches[0] is match.sum.root for match in self.matches):
            return  # the trunk itself minus where it started, as in a loss
        if any(optable.is_add(reader) for reader in found.branches[0].users):
            self._reject(node, "shared-branch")
        else:
            self._keep(found)

    def _look_at_other(self, node: fx.Node) -> None:
        """Look at an add of integers, or of tensors that are not alike."""
        a, b = optable.operand_values(node)
        if a is None or b is None:
            return
        if not (a.is_floating_point() or b.is_floating_point()):
            self._reject(node, "integer")
            return
        ancestry, (x, y) = self.sums.ancestry, operands(node)
        related = ancestry.worked[y] & ancestry.bits((x,)) or ancestry.worked[x] & ancestry.bits((y,))
        if related and a.shape != b.shape:
            self._reject(node, "broadcast")

    def _keep(self, match: Match) -> None:
        self.matches.append(match)
        self.sums.ancestry.carry_on(match.sum.root, match.carrier, match.branches)

    def _sift(self) -> list[Match]:
        """Return the matches that hold beside each other."""
        carriers = {match.carrier: match for match in self.matches} | {match.origin: match for match in self.matches}
        kept = []
        for match in self.matches:
            ends = [end for branch in match.branches for end in self.sums.skips.peel(branch)]
            again = next((carriers[end] for end in ends if end in carriers), None)
            if again is not None:
                self._reject(match.sum.root, "added-again", location(again.sum.root))
            elif match.reason:
                outer = self._around(match)
                self._reject(
                    match.sum.root,
                    "inside-branch" if outer else match.reason,
                    location(outer.sum.root) if outer else "",
                )
            elif not self.overwritten.isdisjoint({*match.sum.adds, *self.sums.skips.peel(match.carrier)}):
                self._reject(match.sum.root, "in-place")
            else:
                kept.append(match)
        return self._disjoint(kept)

    def _around(self, match: Match) -> Match | None:
        """Return the connection in whose branch a sum stands that nothing carries on, such as content plus position."""
        if match.reason == "multi-stream" or self._continues(match, self.matches):
            return None
        return next((m for m in self.matches if m.carrier is match.root and self._holds(m, match)), None)

    def _disjoint(self, matches: list[Match]) -> list[Match]:
        """Of connections that lie in each other and start from the same tensor, keep a chain, else the outer one."""
        by_origin: dict[fx.Node, list[Match]] = {}
        for match in matches:
            by_origin.setdefault(match.origin, []).append(match)
        dropped: set[fx.Node] = set()
        for group in by_origin.values():
            for i, outer in enumerate(group):
                inner = next((m for m in group[:i] if m.sum.root not in dropped and self._holds(outer, m)), None)
                if inner is not None and self._continues(inner, matches):
                    dropped.add(outer.sum.root)
                    self._reject(outer.sum.root, "nested", location(inner.sum.root))
                elif inner is not None:
                    dropped.add(inner.sum.root)
                    self._reject(inner.sum.root, "inside-branch", location(outer.sum.root))
        return [m for m in matches if m.sum.root not in dropped and not self._is_gate(m, matches)]

    def _is_gate(self, match: Match, matches: list[Match]) -> bool:
        """Reject a skip scaled by a parameter inside a branch: the feedthrough `y + D x` of state-space layers."""
        if not self.sums.skips.is_learned(match.carrier, match.root):
            return False
        above, bits = self.sums.ancestry.above, self.sums.ancestry.bits
        this = bits((match.sum.root,))
        for outer in matches:
            starts_before = above[match.carrier] & bits((outer.origin,))
            if (
                starts_before
                and self._holds(outer, match)
                and not (above[outer.carrier] | bits((outer.carrier,))) & this
            ):
                self._reject(match.sum.root, "skip-scaled")
                return True
        return False

    def _holds(self, outer: Match, inner: Match) -> bool:
        bit = self.sums.ancestry.bits((inner.sum.root,))
        return any(
            bit & (self.sums.ancestry.above[branch] | self.sums.ancestry.bits((branch,))) for branch in outer.branches
        )

    def _continues(self, inner: Match, matches: list[Match]) -> bool:
        """Tell whether another connection carries the inner one's sum on."""
        bit = self.sums.ancestry.bits((inner.sum.root,))
        above, worked = self.sums.ancestry.above, self.sums.ancestry.worked
        return any(m.origin is inner.sum.root or above[m.carrier] & ~worked[m.carrier] & bit for m in matches)

    def _residuals(self, matches: list[Match]) -> list[Residual]:
        labels: Counter[tuple[str, str]] = Counter()
        residuals = []
        for match in matches:
            total, branches = match.sum.root, match.branches
            axis = describe.feature_axis(match.root, branches, total, self.order)
            if axis is None:
                self._reject(total, "feature-axis")
                continue
            owner, label = self._label(total, branches[0], labels)
            chain = tuple(add for add in match.sum.adds if _leads_to(add, match))
            kind = describe.kind(total, match.root, branches, self.order)
            learned = self.sums.skips.is_learned(match.carrier, match.root)
            where = location(total)
            residuals.append(
                Residual(total, match.carrier, match.root, branches, chain, kind, owner, label, where, axis, learned)
            )
            for add in match.sum.adds:
                if add not in chain:
                    self._reject(add, "branch-sum", where)
        return residuals

    def _label(self, total: fx.Node, branch: fx.Node, labels: Counter[tuple[str, str]]) -> tuple[str, str]:
        """Return owner and label of a site; a label that clashes is numbered in program order."""
        owner = self.context.namer.owner(total)
        label = describe.label(branch, owner, self.context.namer) or f"line{location(total).rpartition(':')[2]}"
        count = labels[owner, label]
        labels[owner, label] += 1
        return owner, f"{label}_{count}" if count else label

    def _reject(self, node: fx.Node, reason: str, other: str = "") -> None:
        residual, message = REASONS[reason]
        owner = self.context.namer.owner(node)
        text = message.format(other=other)
        self.rejections.append(Rejection(reason, residual, text, owner, location(node), node.name))


def _leads_to(add: fx.Node, match: Match) -> bool:
    """Tell whether the carrier is a term below this add."""
    return any(arg is match.carrier or (arg in match.sum.adds and _leads_to(arg, match)) for arg in operands(add))
