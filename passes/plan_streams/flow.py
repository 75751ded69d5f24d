"""Where streams can flow: which tensors are functions of a sum, or of a graph input, for each token alone."""

from __future__ import annotations

from torch import fx

from mhc_compile.passes.graph import optable, views
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.layouts import sharded
from mhc_compile.passes.graph.walk import between, value


class Flow:
    """The token-wise functions of a graph's sums and inputs.

    Attributes:
        comes_from: maps each node to the sum, else the graph input, that it is a token-wise function of.
        order: each node's place in the program.
    """

    def __init__(self, facts: GraphFacts, axes: dict[fx.Node, int]) -> None:
        """Follow the sums, each with its feature axis, and the inputs through the graph."""
        self.order, self._axes = facts.order, axes
        self.comes_from: dict[fx.Node, fx.Node] = {}
        for node in facts.nodes:
            tensor = value(node)
            if node in axes:
                self.comes_from[node] = node
            elif node in facts.overwritten or tensor is None or tensor.dim() < 2 or not tensor.is_floating_point():
                continue
            elif node.op == "placeholder":
                if node not in facts.static:
                    self.comes_from[node] = node
            else:
                source = self._common(node)
                if source is not None and self._fits(node, source, axes.get(source, -1)):
                    self.comes_from[node] = source

    def _common(self, node: fx.Node) -> fx.Node | None:
        """Return the one sum, else the one graph input, behind the node's inputs."""
        sources = {self.comes_from[arg] for arg in sharded.reads(node) if arg in self.comes_from}
        sums = {source for source in sources if source in self._axes}
        chosen = sums or sources
        return next(iter(chosen)) if len(chosen) == 1 else None

    def _fits(self, node: fx.Node, source: fx.Node, axis: int) -> bool:
        """Tell whether the node can be computed stream by stream, along features on `axis`."""
        if node.target in sharded.SAME:
            return sharded.keeps_parts(node)
        if optable.name(node) in optable.REDUCE | optable.NORM and _has_parts_of_features(node, axis):
            return False
        made, first = value(node), value(source)
        inputs = [arg for arg in node.all_input_nodes if self.comes_from.get(arg) is source]
        given = [tensor for arg in inputs if (tensor := value(arg)) is not None]
        if made is None or first is None or not given:
            return False
        if axis != -1:  # features are moved last inside a region, so nothing may name an axis
            same = made.shape == first.shape and optable.name(node) not in optable.REDUCE | optable.NORM
            return same and (optable.is_copy(node) or optable.is_liftable(node, first.dim()))
        whole = next((tensor for tensor in given if tensor.shape[-1] == first.shape[-1]), given[0])
        if optable.name(node) in optable.VIEW:
            return whole.shape[-1] == first.shape[-1] and views.on_streams(node, 1) is not None
        return optable.is_liftable(node, whole.dim()) and made.shape in (whole.shape, (*whole.shape[:-1], 1))

    def lifts(self, start: fx.Node, end: fx.Node) -> tuple[fx.Node, ...]:
        """Return the nodes on the ways from start (excluded) to end (included) that streams can take.

        From a sum or a graph input these are its token-wise functions; else the end is a cast or multiple of the start.
        What parameters make on the way, such as a gate, is computed once for all streams.
        """
        inside = sorted(between(start, (end,), self.order), key=self.order.__getitem__)
        known = self.comes_from.get(start) is start
        streaming = {start}
        for node in inside:
            if self.comes_from.get(node) is start if known else not streaming.isdisjoint(node.all_input_nodes):
                streaming.add(node)
        found: set[fx.Node] = set()
        stack = [end]
        while stack:
            node = stack.pop()
            if node in streaming and node is not start and node not in found:
                found.add(node)
                stack += node.all_input_nodes
        return tuple(sorted(found, key=self.order.__getitem__))


def _has_parts_of_features(node: fx.Node, axis: int) -> bool:
    """Tell whether each process computes some of a tensor's features only."""
    tensor, lying = value(node), sharded.placements(node) or ()
    return tensor is not None and sharded.divides(lying, tensor.dim() + axis)
