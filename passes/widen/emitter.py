"""Puts the nodes of a site into a graph, each right behind the node of the plain graph that it stands for."""

from __future__ import annotations

from typing import Any

from torch import fx

from mhc_compile.passes.base import PlacedSite
from mhc_compile.passes.graph import provenance
from mhc_compile.passes.graph.walk import value


class Emitter:
    """Creates nodes behind nodes of the plain graph, those behind the same one in the order of their creation.

    Attributes:
        site: the site that new nodes belong to.
    """

    def __init__(self, graph: fx.Graph, site: PlacedSite) -> None:
        """Take a graph with inputs."""
        self.graph, self.site = graph, site
        self._last_input = self._inputs = graph.find_nodes(op="placeholder")[-1]
        self._tail: dict[fx.Node, fx.Node] = {}  # the last node emitted behind a node
        self._place: dict[fx.Node, fx.Node] = {}  # of the nodes that were emitted or moved

    def op(self, at: fx.Node, target: Any, *args: Any) -> Any:
        """Create a node of an op; as an argument of the IR it stands for a tensor."""
        return self.new(at, lambda: self.graph.call_function(target, args))

    def method(self, at: fx.Node, method: str, *args: Any) -> fx.Node:
        """Create a call of a tensor's method."""
        made = self.new(at, lambda: self.graph.call_method(method, args))
        given = value(args[0])
        if given is not None:
            made.meta["example_value"] = getattr(given.detach(), method)(*args[1:])
        return made

    def new(self, at: fx.Node, make: Any) -> fx.Node:
        """Create a node behind `at` and what was put there before; it carries the site's name and origin."""
        last = self._last(at)
        with self.graph.inserting_before(last.next):
            node: fx.Node = make()
        node.meta = provenance.inherited(self.site.residual.total) | {"mhc_site": self.site.residual.name}
        self._place_behind(node, at)
        return node

    def move(self, node: fx.Node, at: fx.Node) -> None:
        """Move a node of the plain graph behind `at` and what was put there before."""
        self._last(at).append(node)
        self._place_behind(node, at)

    def input(self, name: str) -> fx.Node:
        """Create an input behind all others."""
        with self.graph.inserting_after(self._last_input):
            made: fx.Node = self.graph.placeholder(name)
        self._last_input = made
        return made

    def is_behind(self, node: fx.Node, at: fx.Node) -> bool:
        """Tell whether a node was put behind another."""
        return self._place.get(node) is self._anchor(at)

    def _anchor(self, at: fx.Node) -> fx.Node:
        return self._inputs if at.op == "placeholder" else at

    def _last(self, at: fx.Node) -> fx.Node:
        anchor = self._anchor(at)
        return self._tail.get(anchor, self._last_input if anchor is self._inputs else anchor)

    def _place_behind(self, node: fx.Node, at: fx.Node) -> None:
        anchor = self._anchor(at)
        self._tail[anchor], self._place[node] = node, anchor
