"""What several passes ask of a graph as it stands; the runner makes it anew after each rewrite."""

from __future__ import annotations

from functools import cached_property

from torch import fx

from mhc_compile.passes.graph.effects.aliases import last_changes
from mhc_compile.passes.graph.fixed import constant_nodes, static_nodes
from mhc_compile.passes.graph.slices import Slice, slices


class GraphFacts:
    """Facts of a graph, each found when it is first asked for."""

    def __init__(self, gm: fx.GraphModule) -> None:
        """Take the graph as it stands now."""
        self._gm = gm

    @cached_property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The nodes, in program order."""
        return tuple(self._gm.graph.nodes)

    @cached_property
    def order(self) -> dict[fx.Node, int]:
        """Each node's place in the program."""
        return {node: i for i, node in enumerate(self.nodes)}

    @cached_property
    def overwritten(self) -> set[fx.Node]:
        """The nodes whose value may change after they were computed."""
        return set(self.last_changes)

    @cached_property
    def last_changes(self) -> dict[fx.Node, fx.Node]:
        """The last node that changes the memory of each that is overwritten."""
        return last_changes(self._gm)

    @cached_property
    def static(self) -> set[fx.Node]:
        """The nodes that are computed from parameters and buffers alone."""
        return static_nodes(self.nodes)

    @cached_property
    def constant(self) -> set[fx.Node]:
        """The tensors that numbers and shapes alone make."""
        return constant_nodes(self.nodes, self.overwritten)

    @cached_property
    def slices(self) -> dict[fx.Node, Slice]:
        """The slices of tensors that data made, where several parts of one tensor are read."""
        return slices(self.nodes, self.static | self.constant)
