"""Which values a node is computed from, and by what kind of work: sets of ancestors as integers, in one sweep."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from mhc_compile.passes.graph import optable


class Ancestry:
    """Ancestors of each node among the nodes of interest, a bit each, so that a sweep is near-linear.

    Three sets, each part of the one before: `above` holds the ancestors, `worked` those with real work in between,
    `deep` those with a layer of its own in between (work, a non-linearity, work). What a node takes from its inputs by
    integers alone, such as the index of a token or a codebook entry, does not count: no gradient flows there.
    """

    def __init__(self, interesting: Iterable[fx.Node], static: set[fx.Node]) -> None:
        """Give bits to the nodes of interest; `static` are those computed from parameters alone."""
        self.bit = {node: 1 << i for i, node in enumerate(dict.fromkeys(interesting))}
        self.static = static
        self.above: dict[fx.Node, int] = {}
        self.worked: dict[fx.Node, int] = {}
        self.deep: dict[fx.Node, int] = {}
        self._bent: dict[fx.Node, int] = {}  # ancestors with work and a non-linearity behind it

    def bits(self, nodes: Iterable[fx.Node]) -> int:
        """Return the bits of several nodes."""
        result = 0
        for node in nodes:
            result |= self.bit.get(node, 0)
        return result

    def within(self, nodes: Iterable[fx.Node]) -> int:
        """Return the bits of what several nodes are, and are computed from."""
        result = 0
        for node in nodes:
            result |= self.above[node] | self.bit.get(node, 0)
        return result

    def sweep(self, node: fx.Node) -> None:
        """Fill the sets of a node whose inputs have theirs."""
        above = worked = bent = deep = 0
        if not optable.is_discrete(node):
            for arg in optable.sources(node):
                above |= self.above[arg] | self.bit.get(arg, 0)
                worked |= self.worked[arg]
                bent |= self._bent[arg]
                deep |= self.deep[arg]
            if optable.works(node):
                worked, deep = above, deep | bent
            if not optable.is_linear(node, self.static):
                bent = worked
        self.above[node], self.worked[node], self._bent[node], self.deep[node] = above, worked, bent, deep

    def carry_on(self, total: fx.Node, carrier: fx.Node, branches: Iterable[fx.Node]) -> None:
        """Let a connection's sum descend from its carrier, and from its branches but not from what they read.

        A mask or position that every layer's branch reads is no ancestor of the next layer by way of the sum.
        """
        ends = self.bits((carrier, *branches))
        self.above[total] = self.above[carrier] | ends
        for sets in (self.worked, self._bent, self.deep):
            sets[total] = sets[carrier]
