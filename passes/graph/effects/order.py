"""Where nodes stand in a program, and whether they may stand elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import fx

from mhc_compile.passes.graph import checkpoints, optable
from mhc_compile.passes.graph.effects import schemas
from mhc_compile.passes.graph.effects.modes import Modes
from mhc_compile.passes.graph.facts import GraphFacts

_CHEAP = optable.POINTWISE | optable.CAST | optable.SHUFFLE | {"pad"}  # widen pads the parameters of a head


class Order:
    """The order of a graph's nodes, in which mode they run, and whose memory is overwritten.

    Nodes are comparable while a pass rewrites the graph: a new one takes the place of the node that it stands beside.
    """

    def __init__(self, facts: GraphFacts) -> None:
        self.overwritten = facts.overwritten
        self._last_changes = facts.last_changes
        self._order = dict(facts.order)
        self._modes = Modes(facts.nodes)

    def place_beside(self, node: fx.Node, beside: fx.Node) -> None:
        """Give a node the place of another."""
        self._order[node] = self._order[beside]
        self._modes.place_beside(node, beside)

    def sort(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """Return the nodes in program order."""
        return sorted(nodes, key=self._order.__getitem__)

    def can_merge(self, *nodes: fx.Node) -> bool:
        """Tell whether nodes can become one: recomputed by the same checkpoint, with gradients or without them."""
        first = nodes[0]
        tags = checkpoints.tags(first)
        return all(checkpoints.tags(node) == tags and self.same_mode(node, first) for node in nodes)

    def same_mode(self, a: fx.Node, b: fx.Node) -> bool:
        """Tell whether two nodes run in the same gradient mode."""
        return self._modes.same_gradients(a, b)

    def needed(self, operands: Iterable[fx.Node], at: fx.Node) -> list[fx.Node] | None:
        """Return the nodes that must move in front of `at` before it can read the operands, None if some cannot.

        What moves is cheap, reads parameters or what stands in front of `at`, and nobody overwrites it.
        """
        found = self.late(operands, at, but={at})
        cheap = found is not None and all(optable.name(node) in _CHEAP or node.op == "get_attr" for node in found)
        return found if cheap else None

    def late(self, operands: Iterable[fx.Node], at: fx.Node, *, but: Collection[fx.Node] = ()) -> list[fx.Node] | None:
        """Return the nodes that must move to `at` for its readers to have the operands, None if some cannot.

        A node can where nobody will notice: it is a function of what it reads, nobody overwrites that from `at` on, or
        its result, and `at` runs in its mode, so that neither an effect, a mode nor a random number comes to stand
        elsewhere.

        Args:
            operands: what must be there.
            at: a node behind which, or in front of which, they are to be read.
            but: nodes that can be nowhere else.
        """
        found: set[fx.Node] = set()
        stack = list(operands)
        while stack:
            node = stack.pop()
            if node in but:
                return None
            if self._order[node] <= self._order[at]:
                if not self._is_settled(node, at, in_front=at in but):
                    return None
                continue
            if node in found:
                continue
            if node in self.overwritten or not schemas.is_function(node) or not self._modes.same(node, at):
                return None
            found.add(node)
            stack += node.all_input_nodes
        return self.sort(found)

    def _is_settled(self, node: fx.Node, at: fx.Node, *, in_front: bool) -> bool:
        """Tell whether nothing changes what a node holds from `at` on, `at` itself included where it is read before."""
        last = self._last_changes.get(node)
        return last is None or self._order[last] < self._order[at] or (last is at and not in_front)
