"""Which adds are residual connections, and why the others are not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

from torch import fx

from mhc_compile.passes import describe, optable
from mhc_compile.passes.base import Context, Findings, Rejection, Residual, location, value

REASONS = {
    "no-skip": (False, "neither operand is computed from the other"),
    "pointwise-branch": (False, "one operand is computed from the other without any layer in between"),
    "branch-sum": (False, "sums branches of the connection that is completed at {other}"),
    "in-place": (True, "overwrites a tensor that is read again or that belongs to the caller; write x = x + f(x)"),
    "nested": (True, "wraps connections that start from the same tensor, such as {other}; the inner ones are widened"),
    "feature-axis": (True, "no norm, linear or convolution in the branch tells which axis holds the features"),
}


@dataclasses.dataclass(frozen=True)
class FindResiduals:
    """Every same-shape float add is a residual connection or gets a reason.

    An add is one if an operand, the carrier, is an ancestor of every other term of the (single-use) tree of adds, with
    real work in between. What an add only passes on does not count as computed from it: a mask or a position that is
    added in every layer is an ancestor of later scores through nothing but these adds.
    """

    name: ClassVar[str] = "find-residuals"
    rewrites: ClassVar[bool] = False

    def __call__(self, gm: fx.GraphModule, context: Context) -> None:
        """Fill `context.findings`."""
        context.findings = _Finder(gm, context).run()


@dataclasses.dataclass(frozen=True)
class _Tree:
    """A tree of adds under a root: its terms and, of each term, nothing else."""

    root: fx.Node
    adds: tuple[fx.Node, ...]
    terms: tuple[fx.Node, ...]


class _Finder:
    """One forward sweep; sets of ancestors are integers with a bit per operand of an add, so it is near-linear."""

    def __init__(self, gm: fx.GraphModule, context: Context) -> None:
        self.context = context
        self.nodes = list(gm.graph.nodes)
        self.order = {node: i for i, node in enumerate(self.nodes)}
        self.adds = [node for node in self.nodes if optable.is_add(node)]
        self.inner = {node for node in self.adds if self._only_feeds_an_add(node)}
        operands = {end for node in self.adds for arg in node.args[:2] for end in (arg, _root(arg))}
        self.bit = {node: 1 << i for i, node in enumerate(sorted(operands, key=self.order.__getitem__))}
        self.above: dict[fx.Node, int] = {}  # ancestors
        self.worked: dict[fx.Node, int] = {}  # ancestors with real work in between
        self.taken: dict[fx.Node, Residual] = {}  # what the connection at this carrier is
        self.labels: Counter[tuple[str, str]] = Counter()
        self.residuals: list[Residual] = []
        self.rejections: list[Rejection] = []

    def _only_feeds_an_add(self, node: fx.Node) -> bool:
        return len(node.users) == 1 and optable.is_add(next(iter(node.users)))

    def run(self) -> Findings:
        """Sweep the graph."""
        adds = set(self.adds)
        for node in self.nodes:
            self._sweep(node, node in adds)
            if node in adds and node not in self.inner:
                self._judge(_tree(node, self.inner))
        by_order = sorted(self.rejections, key=lambda r: r.node)
        return Findings(tuple(self.residuals), tuple(by_order))

    def _sweep(self, node: fx.Node, add: bool) -> None:
        above = worked = 0
        for arg in node.all_input_nodes:
            above |= self.above[arg] | (0 if add else self.bit.get(arg, 0))
            worked |= self.worked[arg]
        self.above[node] = above
        self.worked[node] = worked | above if optable.works(node) else worked

    def _judge(self, tree: _Tree) -> None:
        """Take the tree as one connection, else its root alone, and then the trees below it."""
        for candidate in dict.fromkeys((tree, _Tree(tree.root, (tree.root,), tuple(tree.root.args[:2])))):
            carrier = self._carrier(candidate.terms)
            if carrier is not None:
                self._accept(candidate, carrier)
                break
        else:
            self._reject(tree.root, self._why_not(tree.root))
            candidate = _Tree(tree.root, (tree.root,), tuple(tree.root.args[:2]))
        for add in tree.adds:
            if add not in candidate.adds and add in candidate.terms:
                self._judge(_tree(add, self.inner))

    def _carrier(self, terms: tuple[fx.Node, ...]) -> fx.Node | None:
        """Return the term that all others are made from by real work."""
        for term in terms:
            bits = self.bit.get(term, 0) | self.bit.get(_root(term), 0)
            others = [other for other in terms if other is not term]
            if bits and others and all(self.worked[other] & bits for other in others):
                return term
        return None

    def _accept(self, tree: _Tree, carrier: fx.Node) -> None:
        branches = tuple(term for term in tree.terms if term is not carrier)
        chain = tuple(add for add in tree.adds if _holds(add, carrier, self.inner))
        for add in tree.adds:
            if add not in chain:
                self._reject(add, "branch-sum", location(tree.root))
        root = carrier if any(self.worked[b] & self.bit.get(carrier, 0) for b in branches) else _root(carrier)
        if any(optable.is_inplace(add) for add in tree.adds):
            return self._reject(tree.root, "in-place")
        first = self.taken.get(root)
        if first is not None and self.worked[tree.root] & self.bit.get(first.total, 0):
            return self._reject(tree.root, "nested", first.source)
        axis = describe.feature_axis(root, branches, self.order)
        if axis is None:
            return self._reject(tree.root, "feature-axis")
        owner = self.context.namer.owner(tree.root)
        label = describe.label(branches[0], owner, self.context.namer) or f"line{location(tree.root).rpartition(':')[2]}"
        count = self.labels[owner, label]
        self.labels[owner, label] += 1
        kind = describe.kind(tree.root, root, branches, self.order)
        residual = Residual(
            tree.root, carrier, root, branches, chain, kind, owner, f"{label}_{count}" if count else label, location(tree.root), axis
        )  # fmt: skip
        self.taken.setdefault(root, residual)
        self.residuals.append(residual)

    def _why_not(self, node: fx.Node) -> str:
        a, b = node.args[:2]
        bits = [self.bit.get(x, 0) | self.bit.get(_root(x), 0) for x in (a, b)]
        related = self.above[b] & bits[0] or self.above[a] & bits[1]  # type: ignore[index]
        return "pointwise-branch" if related else "no-skip"

    def _reject(self, node: fx.Node, reason: str, other: str = "") -> None:
        residual, message = REASONS[reason]
        owner = self.context.namer.owner(node)
        text = message.format(other=other)
        self.rejections.append(Rejection(reason, residual, text, owner, location(node), node.name))


def _tree(root: fx.Node, inner: set[fx.Node]) -> _Tree:
    adds: list[fx.Node] = []
    terms: list[fx.Node] = []

    def walk(node: fx.Node) -> None:
        adds.append(node)
        for arg in node.args[:2]:
            if arg in inner:
                walk(arg)  # type: ignore[arg-type]
            else:
                terms.append(arg)  # type: ignore[arg-type]

    walk(root)
    return _Tree(root, tuple(adds), tuple(terms))


def _holds(add: fx.Node, carrier: fx.Node, inner: set[fx.Node]) -> bool:
    """Tell whether the carrier is a term below this add."""
    return any(arg is carrier or (arg in inner and _holds(arg, carrier, inner)) for arg in add.args[:2])  # type: ignore[arg-type]


def _root(node: fx.Node) -> fx.Node:  # type: ignore[return]
    """Return what the node is a cast or a constant multiple of."""
    for node in _peel(node):
        pass
    return node


def _peel(node: fx.Node) -> Iterator[fx.Node]:
    yield node
    while True:
        op = optable.name(node)
        tensors = [arg for arg in node.args if isinstance(arg, fx.Node) and value(arg) is not None]
        same = len(tensors) == 1 and _alike(node, tensors[0])
        if not same or not (op in optable.CAST or op in ("mul", "div", "truediv", "contiguous")):
            return
        node = tensors[0]
        yield node


def _alike(node: fx.Node, arg: fx.Node) -> bool:
    a, b = value(node), value(arg)
    return a is not None and b is not None and a.shape == b.shape
