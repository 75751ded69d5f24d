"""Where the ops of a site can stand: in front of what the branch computes, without anything of the user's moving."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from mhc_compile.passes.base import Place, Residual
from mhc_compile.passes.graph.effects.order import Order
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.walk import between, operands

Readers = Mapping[fx.Node, list[fx.Node]]


class Places:
    """Finds the places of a graph's sites."""

    def __init__(self, facts: GraphFacts) -> None:
        """Take a graph as it stands."""
        self.nodes, self.order = facts.nodes, facts.order
        self._order = Order(facts)

    def readers(self, residual: Residual, start: fx.Node, lifts: tuple[fx.Node, ...]) -> Readers:
        """Return who reads the carrier, or a node on its way, for the branch.

        What the carrier is made with besides the streams, such as a gate, stands before the site: it gets the readout.
        """
        held = dict.fromkeys((start, *lifts))
        before = between(start, (residual.carrier,), self.order)
        inside = between(start, residual.branches, self.order) - before - held.keys()
        return {node: [user for user in node.users if user in inside] for node in held}

    def of(self, residual: Residual, start: fx.Node, lifts: tuple[fx.Node, ...], readers: Readers) -> Place | None:
        """Return the place of a site, None where nodes would pass what they must not.

        It is behind the carrier, in the gradient mode of the sum. Where the branch begins before that, it is the last
        place in that mode in front of the branch, and what makes the carrier must be able to stand there.
        """
        if not self._sums_at_once(residual):
            return None
        total, reading = residual.total, {user for users in readers.values() for user in users}
        first = min((self.order[user] for user in reading), default=len(self.nodes))
        for node in self.nodes[self.order[residual.carrier] : first]:
            if self._order.same_mode(node, total):
                return Place(node)
        for node in reversed(self.nodes[self.order[start] : first]):
            if self._order.same_mode(node, total):
                moved = self._moved(node, start, lifts, reading)
                if moved is not None:
                    return Place(node, moved)
        return None

    def _moved(
        self, behind: fx.Node, start: fx.Node, lifts: tuple[fx.Node, ...], reading: set[fx.Node]
    ) -> tuple[fx.Node, ...] | None:
        """Return what must move behind a node for the lifts to be done there, None if it cannot."""
        late = {node for node in lifts if self.order[node] > self.order[behind]}
        if self._order.late(late, behind, but=reading) is None:
            return None
        streams = {start, *lifts}
        given = {arg for node in late for arg in node.all_input_nodes if arg not in streams}
        moved = self._order.late(given, behind, but=reading)
        return None if moved is None else tuple(moved)

    def _sums_at_once(self, residual: Residual) -> bool:
        """Tell whether a sum of several adds can be done at the last of them: nobody overwrites a term before."""
        terms = {term for add in residual.adds if add is not residual.total for term in operands(add)}
        return self._order.overwritten.isdisjoint(terms - {residual.carrier})
