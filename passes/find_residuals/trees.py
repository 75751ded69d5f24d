"""Trees of adds: which adds and terms each of them ends, laid out once, without recursion."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import fx

from mhc_compile.passes.graph.walk import operands


@dataclasses.dataclass(frozen=True)
class Sum:
    """A tree of adds, or one difference, that ends in `total`."""

    total: fx.Node
    adds: tuple[fx.Node, ...]
    terms: tuple[fx.Node, ...]


@dataclasses.dataclass
class _Layout:
    """The adds of a tree, each in front of those below it, and its terms from left to right.

    Attributes:
        adds: every add.
        terms: every term.
        spans: of every add, where the adds and terms that it ends begin and stop.
        first: of every add, the place of its term that stands first in the program.
        failed: a term that could carry the others, and one that is not made from it.
    """

    adds: list[fx.Node] = dataclasses.field(default_factory=list)
    terms: list[fx.Node] = dataclasses.field(default_factory=list)
    spans: dict[fx.Node, tuple[int, int, int, int]] = dataclasses.field(default_factory=dict)
    first: dict[fx.Node, int] = dataclasses.field(default_factory=dict)
    failed: tuple[int, int] = (-1, -1)


class Trees:
    """The trees of adds of a graph."""

    def __init__(self, inner: set[fx.Node], place: Callable[[fx.Node], int]) -> None:
        """Take the adds that are part of a larger tree, and where in the program a term starts."""
        self._inner, self._place = inner, place
        self._layouts: dict[fx.Node, _Layout] = {}

    def below(self, adds: tuple[fx.Node, ...]) -> list[fx.Node]:
        """Return the adds of a tree that end the operands of some of its adds."""
        taken = set(adds)
        return [arg for add in adds for arg in operands(add) if arg in self._inner and arg not in taken]

    def sum(self, total: fx.Node) -> Sum:
        """Return the tree that ends in an add, its terms from left to right."""
        layout = self._layout(total)
        a, b, c, d = layout.spans[total]
        return Sum(total, tuple(layout.adds[a:b]), tuple(layout.terms[c:d]))

    def carrier(self, total: fx.Node, made_from: Callable[[fx.Node], Callable[[fx.Node], bool]]) -> fx.Node | None:
        """Return the term from which all others of the tree are made, None where there is no such term.

        It can only be the one that starts first in the program. A pair that fails is kept: it fails in every smaller
        tree that holds both, so that a long sum is looked through about once.

        Args:
            total: the tree's last add.
            made_from: tells of a term whether another is made from it.
        """
        layout = self._layout(total)
        _, _, start, stop = layout.spans[total]
        first = layout.first[total]
        if layout.failed[0] == first and start <= layout.failed[1] < stop:
            return None
        term = layout.terms[first]
        is_made = made_from(term)
        others = [i for i in range(start, stop) if layout.terms[i] is not term]
        missing = next((i for i in others if not is_made(layout.terms[i])), None)
        if missing is not None:
            layout.failed = first, missing
        return term if others and missing is None else None

    def _layout(self, total: fx.Node) -> _Layout:
        if total not in self._layouts:
            made = self._laid_out(total)
            self._layouts.update(dict.fromkeys(made.adds, made))
        return self._layouts[total]

    def _laid_out(self, root: fx.Node) -> _Layout:
        made = _Layout()
        places: list[int] = []
        begun: dict[fx.Node, tuple[int, int]] = {}
        stack: list[tuple[fx.Node, bool]] = [(root, True)]
        while stack:
            node, is_add = stack.pop()
            if not is_add:
                made.terms.append(node)
                places.append(self._place(node))
            elif node not in begun:
                begun[node] = len(made.adds), len(made.terms)
                made.adds.append(node)
                a, b = operands(node)
                stack += [(node, True), (b, b in self._inner), (a, a in self._inner)]
            else:
                (at, start), stop = begun[node], len(made.terms)
                made.spans[node] = at, len(made.adds), start, stop
                a, b = operands(node)
                ends = [made.first[a] if a in self._inner else start, made.first[b] if b in self._inner else stop - 1]
                made.first[node] = min(ends, key=places.__getitem__)
        return made
