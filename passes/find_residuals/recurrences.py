"""Sums that look like residual connections and are none: states of a recurrence, iterations, parameters alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from torch import fx

from mhc_compile.passes.find_residuals.ancestry import Ancestry
from mhc_compile.passes.find_residuals.sums import Match
from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.slices import Slice
from mhc_compile.passes.graph.walk import between, value

_PRODUCTS = frozenset("matmul bmm mm einsum baddbmm tensordot".split())
_POLYNOMIAL = (
    _PRODUCTS
    | optable.VIEW
    | optable.CAST
    | frozenset("add sub rsub neg mul div truediv mean sum masked_fill tril triu square".split())
)


class Recurrences:
    """Looks at connections that carry on one another, a chain: a network's layers differ, steps of a recurrence do not.

    A chain is no chain of layers where
    - parameters or numbers alone make all of it;
    - no connection of it has weights, and each is a polynomial: the state of linear attention, an inverse by iteration;
    - the same weights are applied again, each time to another slice of the same tensor: steps in time.
    """

    def __init__(self, facts: GraphFacts, ancestry: Ancestry) -> None:
        """Take the ancestry of a graph whose slices have bits of their own."""
        self.facts, self.ancestry = facts, ancestry
        self.mask = ancestry.bits(facts.slices)
        self.by_bit = {ancestry.bit[node].bit_length(): part for node, part in facts.slices.items()}

    def judge(self, matches: Sequence[Match]) -> dict[Match, str]:
        """Return the reason of each match that is no residual connection."""
        found: dict[Match, str] = {}
        for chain in self._chains(matches):
            plain = [match for match in chain if not match.reason] or chain  # what a gate scales may read them
            fixed = self.facts.static | self.facts.constant if chain[0].sum.total in self.facts.static else set()
            if fixed and all(match.sum.total in fixed for match in chain):
                found |= dict.fromkeys(chain, "parameters")
            elif self._is_first_step(chain) or all(self._is_polynomial(match) for match in plain):
                found |= dict.fromkeys(plain, "recurrence")
            elif len(chain) > 1 and self.mask:
                found |= dict.fromkeys(self._in_time(chain), "recurrence")
        return found

    def _is_first_step(self, chain: list[Match]) -> bool:
        """Tell whether a chain is one step away from numbers, such as the zeros that a state starts with."""
        return len(chain) == 1 and chain[0].ultimate in self.facts.constant

    def _chains(self, matches: Sequence[Match]) -> Iterable[list[Match]]:
        """Group the connections whose trunks are one, of one shape, in program order."""
        ancestry, by_bit = self.ancestry, dict[int, int]()
        parent = list(range(len(matches)))

        def top(i: int) -> int:
            while parent[i] != i:
                parent[i] = i = parent[parent[i]]
            return i

        for i, match in enumerate(matches):
            by_bit[ancestry.bit[match.sum.total].bit_length()] = i
        totals = ancestry.bits(match.sum.total for match in matches)
        for i, match in enumerate(matches):
            end = match.ultimate
            trunk = (ancestry.bits((end,)) | ancestry.above[end] & ~ancestry.worked[end]) & totals
            while trunk:
                before = by_bit[trunk.bit_length()]
                total = matches[before].sum.total
                if _sizes(total) == _sizes(match.sum.total):
                    parent[top(i)] = top(before)
                trunk &= ~(ancestry.above[total] | ancestry.bit[total])
        chains = defaultdict(list)
        for i, match in enumerate(matches):
            chains[top(i)].append(match)
        return chains.values()

    def _in_time(self, chain: list[Match]) -> list[Match]:
        """Return the steps that apply the same weights to one slice after the other, and what stands between them."""
        wholes: dict[fx.Node | str, dict[Match, set[str]]] = defaultdict(dict)
        for match in chain:
            for part in self._read_beside_the_state(match):
                wholes[part.whole].setdefault(match, set()).add(part.which)
        timed = {m for steps in wholes.values() if len(set(map(frozenset, steps.values()))) > 1 for m in steps}
        if not timed:
            return []
        by_weights = defaultdict(list)
        for match in chain:
            by_weights[self._weights(match)].append(match)
        place = {match: i for i, match in enumerate(chain)}
        tied = [[place[match] for match in group] for group in by_weights.values() if len(group) > 1]
        steps = [i for group in tied if len(timed.intersection(chain[k] for k in group)) > 1 for i in group]
        if not steps:
            return []
        inside = range(min(steps), max(steps) + 1)
        return [chain[i] for group in tied if any(k in inside for k in group) for i in group]

    def _read_beside_the_state(self, match: Match) -> Iterable[Slice]:
        """Iterate over the slices that a branch is computed from, other than by way of the carrier."""
        found = 0
        for branch in match.branches:
            found |= self.ancestry.above[branch] | self.ancestry.bits((branch,))
        found &= self.mask & ~self.ancestry.above[match.ultimate]
        while found:
            yield self.by_bit[found.bit_length()]
            found ^= 1 << found.bit_length() - 1

    def _weights(self, match: Match) -> frozenset[object]:
        """Return the parameters that the branch's layers apply to what it reads."""
        found: set[object] = set()
        for node in self._on_the_way(match):
            if node.op == "call_module":
                found.add(node.target)
            elif optable.works(node):
                found.update(self._leaves(self._parameters(node, match)))
        return frozenset(found)

    def _parameters(self, node: fx.Node, match: Match) -> list[fx.Node]:
        """Return the parameters and constants that an op reads, but for a state that is made from some."""
        bit, above = self.ancestry.bit[match.reads], self.ancestry.above
        fixed = [arg for arg in node.all_input_nodes if arg in self.facts.static or arg in self.facts.constant]
        return [arg for arg in fixed if arg is not match.reads and not above[arg] & bit]

    def _leaves(self, nodes: Iterable[fx.Node]) -> Iterable[object]:
        stack = list(nodes)
        while stack:
            node = stack.pop()
            if not node.all_input_nodes:
                yield node.target
            stack += node.all_input_nodes

    def _on_the_way(self, match: Match) -> Iterable[fx.Node]:
        bit = self.ancestry.bit[match.reads]
        inside = between(match.reads, match.branches, self.facts.order)
        return (node for node in inside if self.ancestry.above[node] & bit)

    def _is_polynomial(self, match: Match) -> bool:
        """Tell whether a branch has no weights, and nothing but products and sums of what it reads."""
        if match.reason == "multi-stream":
            return False
        bit, seen = self.ancestry.bit[match.reads], set[fx.Node]()
        stack = list(match.branches)
        while stack:
            node = stack.pop()
            if node in seen or node is match.reads or not self.ancestry.above[node] & bit:
                continue
            seen.add(node)
            if optable.name(node) not in _POLYNOMIAL:
                return False
            if optable.name(node) in _PRODUCTS and self._parameters(node, match):
                return False
            stack += node.all_input_nodes
        return True


def _sizes(node: fx.Node) -> list[str]:
    tensor = value(node)
    return [] if tensor is None else [str(size) for size in tensor.shape]  # as text, so that no size is specialised
