"""Where nodes stand in a program, and whether they may stand elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from mhc_compile.passes.graph import checkpoints, optable
from mhc_compile.passes.graph.facts import GraphFacts

_MOVABLE = optable.POINTWISE | optable.CAST | optable.SHUFFLE
_INFERENCE = {"_enter_inference_mode": 1, "_exit_inference_mode": -1}


class Order:
    """The order of a graph's nodes, which of them run with gradients, and whose memory is overwritten.

    Nodes are comparable while a pass rewrites the graph: a new one takes the place of the node that it stands beside.
    """

    def __init__(self, facts: GraphFacts) -> None:
        self.overwritten = facts.overwritten
        self._order = dict(facts.order)
        self._mode: dict[fx.Node, tuple[object, int]] = {}
        switches = [node for node in facts.nodes if optable.name(node) == "_set_grad_enabled"]
        grad = switches[-1].args[0] if switches else None  # what a graph changes, it restores at its end
        inference = 0
        for node in facts.nodes:
            if optable.name(node) == "_set_grad_enabled":
                grad = node.args[0]
            inference += _INFERENCE.get(optable.name(node), 0)
            self._mode[node] = grad, inference

    def place_beside(self, node: fx.Node, beside: fx.Node) -> None:
        """Give a node the place of another."""
        self._order[node], self._mode[node] = self._order[beside], self._mode[beside]

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
        return self._mode[a] == self._mode[b]

    def needed(self, operands: Iterable[fx.Node], at: fx.Node) -> list[fx.Node] | None:
        """Return the nodes that must move in front of `at` before it can read the operands, None if some cannot.

        What moves is cheap, reads parameters or what stands in front of `at`, and nobody overwrites it.
        """
        found: set[fx.Node] = set()
        stack = list(operands)
        while stack:
            node = stack.pop()
            if node is at or node in self.overwritten:
                return None
            if node in found or self._order[node] <= self._order[at]:
                continue
            movable = optable.name(node) in _MOVABLE or node.op == "get_attr"
            if not movable or not self.same_mode(node, at):
                return None
            found.add(node)
            stack += node.all_input_nodes
        return self.sort(found)


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
