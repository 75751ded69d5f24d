"""Sums: trees of adds, differences, and what each of their terms may be to the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from torch import fx

from mhc_compile.passes.find_residuals import describe
from mhc_compile.passes.find_residuals.ancestry import Ancestry
from mhc_compile.passes.find_residuals.skips import Skips
from mhc_compile.passes.find_residuals.trees import Sum, Trees
from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.walk import between, elements, operands, value


@dataclasses.dataclass(frozen=True)
class Match:
    """A sum that is a residual connection.

    Attributes:
        sum: the terms.
        carrier: the term that is carried on.
        reads: what the branches read: the carrier, or what it is a cast or multiple of.
        ultimate: what the carrier is a cast or multiple of in the end.
        reason: empty, or why it is no connection that can be widened.
    """

    sum: Sum
    carrier: fx.Node
    reads: fx.Node
    ultimate: fx.Node
    reason: str = ""

    @property
    def branches(self) -> tuple[fx.Node, ...]:
        """Return the terms beside the carrier."""
        return tuple(term for term in self.sum.terms if term is not self.carrier)


class Sums:
    """The sums of a graph and the relations of their terms."""

    def __init__(self, facts: GraphFacts) -> None:
        """Look for sums in a graph."""
        nodes, self.order = facts.nodes, facts.order
        self.adds = {node for node in nodes if optable.is_add(node)}
        self.differences = {node for node in nodes if optable.is_difference(node)}
        self.inner = {node for node in self.adds if self._only_feeds_an_add(node)}
        steps = {node for node, part in facts.slices.items() if part.is_step}
        self.skips = Skips(facts.static, facts.constant, steps)
        self.trees = Trees(self.inner, lambda term: self.order[self._ultimate(term)])
        self.ancestry = Ancestry([*self._interesting(nodes), *facts.slices], facts.static)
        self.halves: dict[fx.Node, fx.Node] = {}  # sums of some features of a tensor and what its others made

    def _interesting(self, nodes: Iterable[fx.Node]) -> Iterator[fx.Node]:
        """Iterate over the nodes whose descendants matter: whatever a term may pass on."""
        for node in nodes:
            if node in self.adds or node in self.differences:
                yield node
                for term in operands(node):
                    yield from self.skips.peel(term)
                    if node in self.adds:
                        yield from self.skips.reshaped(term)
                        yield from self.skips.joined(term)
                        yield from self.skips.projected(term)
                        yield from self.skips.mixed(term)
                        for kept, _ in self.skips.gated(term):
                            yield from self.skips.peel(kept)
            elif optable.name(node) in ("add", "lerp") and all(t is not None for t in optable.operand_values(node)):
                yield node
                for term in operands(node):
                    yield from self.skips.peel(term)

    def _only_feeds_an_add(self, node: fx.Node) -> bool:
        (user, *others) = node.users or (None,)
        return not others and user in self.adds and user.args[0] is not user.args[1]

    def _ultimate(self, term: fx.Node) -> fx.Node:
        *_, end = self.skips.peel(term)
        return end

    def match(self, total: fx.Node) -> Match | None:
        """Take the whole tree as one connection, else its last add alone; else a connection of another kind."""
        alone = Sum(total, (total,), operands(total))
        carrier = self.trees.carrier(total, self._made_from)
        if carrier is not None and (found := self._carried(self.trees.sum(total), carrier)) is not None:
            return found
        for term in alone.terms:
            if (found := self._carried(alone, term)) is not None:
                return found
        return self._otherwise(alone)

    def _made_from(self, carrier: fx.Node) -> Callable[[fx.Node], bool]:
        bits, worked = self.ancestry.bits(self.skips.peel(carrier)), self.ancestry.worked
        return lambda term: bool(worked[term] & bits)

    def _carried(self, candidate: Sum, carrier: fx.Node) -> Match | None:
        """Take a term as the carrier if all others are made from it, or from what it is a multiple of, by real work."""
        bits = self.ancestry.bits(self.skips.peel(carrier))
        others = [term for term in candidate.terms if term is not carrier]
        if not others or not all(self.ancestry.worked[other] & bits for other in others):
            return None
        if all(self.skips.is_pooled(term) for term in candidate.terms):  # the trends of a decomposition
            return None
        return Match(candidate, carrier, *self._reads(carrier, *others))

    def _reads(self, carrier: fx.Node, *branches: fx.Node) -> tuple[fx.Node, fx.Node]:
        """Return what the branches read of the nodes that the carrier is a multiple of, and the last of these."""
        peeled = list(self.skips.peel(carrier))
        worked = [self.ancestry.worked[branch] for branch in branches]
        return next(node for node in peeled if any(w & self.ancestry.bit[node] for w in worked)), peeled[-1]

    def _otherwise(self, alone: Sum) -> Match | None:
        """Recognise connections whose skip is no plain tensor: gated, a mixture, a part of one, a projection."""
        for carrier, other in (alone.terms, alone.terms[::-1]):
            for kind in (self._gated, self._mixed, self._part, self._projected):
                found = kind(alone, carrier, other)
                if found is not None:
                    return found
        return None

    def _gated(self, alone: Sum, carrier: fx.Node, other: fx.Node) -> Match | None:
        for kept, gate in self.skips.gated(carrier):
            made, bits = self.skips.ungated(other, gate), self.ancestry.bits(self.skips.peel(kept))
            if self.ancestry.worked[made] & bits:
                return Match(alone, carrier, *self._reads(kept, made), "gated-skip")
        return None

    def _mixed(self, alone: Sum, carrier: fx.Node, other: fx.Node) -> Match | None:
        for root in self.skips.mixed(carrier):
            if self.ancestry.deep[other] & self.ancestry.bit[root] and self._is_spread(other):
                return Match(alone, carrier, carrier, carrier, "multi-stream")
        return None

    def _part(self, alone: Sum, carrier: fx.Node, other: fx.Node) -> Match | None:
        worked = self.ancestry.worked[other]
        for root in self.skips.reshaped(carrier) if not self.skips.is_pooled(other) else ():
            if worked & self.ancestry.bit[root]:
                if not self._splits(alone.total, carrier, root, other):
                    return Match(alone, carrier, root, root, "skip-reshaped")
                self.halves[alone.total] = root
        for root in self.skips.joined(carrier):
            if worked & self.ancestry.bit[root]:
                return Match(alone, carrier, root, root, "skip-reshaped")
        return None

    def _projected(self, alone: Sum, carrier: fx.Node, other: fx.Node) -> Match | None:
        for root in self.skips.projected(carrier) if not optable.is_resize(other) else ():
            if self.ancestry.deep[other] & self.ancestry.bit[root]:
                return Match(alone, carrier, root, root, "projection-shortcut")
        return None

    def _is_spread(self, branch: fx.Node) -> bool:
        """Tell whether a branch is the product of a tensor with a weight for each stream."""
        while optable.name(branch) in optable.VIEW | optable.CAST and branch.all_input_nodes:
            branch = branch.all_input_nodes[0]
        return optable.name(branch) in optable.CONTRACTION | {"mul"} and len(branch.all_input_nodes) == 2

    def _splits(self, total: fx.Node, part: fx.Node, whole: fx.Node, branch: fx.Node) -> bool:
        """Tell whether a part holds some of the features only, as in coupling layers and Res2Net's split sums."""
        axis = describe.feature_axis(whole, (branch,), total, self.order)
        a, b = value(part), value(whole)
        if a is not None and b is not None and elements(a) == elements(b):
            return False
        if axis is None or a is None or b is None or a.dim() != b.dim():
            return True
        return a.shape[axis] != b.shape[axis]

    def difference(self, node: fx.Node) -> Match | None:
        """Take `x - f(x)` as a connection if f has weights."""
        carrier, branch = operands(node)
        found = self._carried(Sum(node, (node,), (carrier, branch)), carrier)
        if found is None:
            return None
        inside = between(found.reads, (branch,), self.order)
        weighty = any(optable.works(n) and not self.skips.static.isdisjoint(n.all_input_nodes) for n in inside)
        return found if weighty else None

    def interpolation(self, node: fx.Node) -> Match | None:
        """Take `torch.lerp(x, f(x), gate)` as a connection whose skip a gate scales."""
        start, end = operands(node)
        for carrier, other in ((start, end), (end, start)):
            bits = self.ancestry.bits(self.skips.peel(carrier))
            if self.ancestry.worked[other] & bits:
                found = Sum(node, (node,), (start, end))
                return Match(found, carrier, *self._reads(carrier, other), "gated-skip")
        return None

    def is_reversible(self, half: fx.Node, matches: Iterable[Match]) -> bool:
        """Tell whether the other half of the features gets what this sum makes: `y1 = x1 + f(x2); y2 = x2 + g(y1)`."""
        whole, bit = self.halves[half], self.ancestry.bit[half]
        others = (m for m in matches if whole in self.skips.reshaped(m.carrier))
        return any(bit & self.ancestry.within(m.branches) for m in others)

    def wrapped(self, total: fx.Node, matches: Iterable[Match]) -> Match | None:
        """Return a connection that starts from one operand and that the other is a multiple, norm or the like of."""
        above, bits = self.ancestry.above, self.ancestry.bits
        if all(self.skips.is_pooled(term) for term in self.trees.sum(total).terms):  # the trends of a decomposition
            return None
        for carrier, other in (operands(total), operands(total)[::-1]):
            start = bits(self.skips.peel(carrier))
            inside = self.ancestry.within((other,))
            if not above[other] & start:
                continue
            for match in matches:
                if inside & bits((match.sum.total,)) and above[match.sum.total] & start:
                    return match
        return None

    def broadcasts(self, node: fx.Node) -> str:
        """Return the reason of an add of tensors of two shapes that is a connection, else nothing."""
        x, y = operands(node)
        for carrier, branch in ((x, y), (y, x)):
            a, b, total = value(carrier), value(branch), value(node)
            if a is None or b is None or total is None or b.dim() == 0 or a.shape == b.shape:
                continue
            if not self.ancestry.worked[branch] & self.ancestry.bits(self.skips.peel(carrier)):
                continue
            if a.shape == total.shape:
                return "broadcast"
            alike = list(a.shape)[1 - total.dim() :] == list(total.shape)[1:]  # but for the batch
            if b.shape == total.shape and alike and carrier in self.skips.static:
                return "broadcast-skip"
        return ""

    def is_related(self, total: fx.Node) -> bool:
        """Tell whether one operand is computed from the other at all."""
        a, b = operands(total)
        bits = [self.ancestry.bits(self.skips.peel(x)) for x in (a, b)]
        return bool(self.ancestry.above[b] & bits[0] or self.ancestry.above[a] & bits[1])
