"""Which adds are residual connections, and why the others are not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

from torch import fx

from mhc_compile.passes import describe, optable
from mhc_compile.passes.aliases import overwritten
from mhc_compile.passes.base import Context, Findings, Rejection, Residual, location, value

REASONS = {
    "no-skip": (False, "neither operand is computed from the other"),
    "pointwise-branch": (False, "one operand is computed from the other without any layer in between"),
    "branch-sum": (False, "sums branches of the connection that is completed at {other}"),
    "in-place": (True, "overwrites a tensor that is read again or that belongs to the caller; write x = x + f(x)"),
    "nested": (True, "wraps connections that start from the same tensor, such as {other}; the inner ones are widened"),
    "feature-axis": (True, "no norm, linear or convolution in the branch tells which axis holds the features"),
}

_SCALES = frozenset(("mul", "div", "truediv", "contiguous"))


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
        operands = {end for node in self.adds for arg in _operands(node) for end in _peel(arg)}
        self.overwritten = overwritten(gm)
        self.bit = {node: 1 << i for i, node in enumerate(sorted(operands, key=self.order.__getitem__))}
        self.above: dict[fx.Node, int] = {}  # ancestors
        self.worked: dict[fx.Node, int] = {}  # ancestors with real work in between
        self.taken: dict[fx.Node, Residual] = {}  # what the connection at this carrier is
        self.labels: Counter[tuple[str, str]] = Counter()
        self.residuals: list[Residual] = []
        self.rejections: list[Rejection] = []

    def _only_feeds_an_add(self, node: fx.Node) -> bool:
        (user, *others) = node.users or (None,)
        return not others and user is not None and optable.is_add(user) and user.args[0] is not user.args[1]

    def run(self) -> Findings:
        """Sweep the graph."""
        adds = set(self.adds)
        for node in self.nodes:
            self._sweep(node, node in adds)
            if node in adds and node not in self.inner:
                self._judge(_tree(node, self.inner))
        place = {node.name: i for node, i in self.order.items()}
        residuals = sorted(self.residuals, key=lambda r: self.order[r.total])
        return Findings(tuple(residuals), tuple(sorted(self.rejections, key=lambda r: place[r.node])))

    def _sweep(self, node: fx.Node, add: bool) -> None:
        above = worked = 0
        for arg in optable.sources(node):
            above |= self.above[arg] | (0 if add else self.bit.get(arg, 0))
            worked |= self.worked[arg]
        self.above[node] = above
        self.worked[node] = worked | above if optable.works(node) else worked

    def _judge(self, tree: _Tree) -> None:
        """Take the tree as one connection, else its root alone, and then the trees below it."""
        alone = _Tree(tree.root, (tree.root,), _operands(tree.root))
        for candidate in dict.fromkeys((tree, alone)):
            carrier = self._carrier(candidate.terms)
            if carrier is not None:
                candidate = candidate if self._accept(candidate, carrier) else alone
                break
        else:
            self._reject(tree.root, self._why_not(tree.root))
            candidate = alone
        for add in tree.adds:
            if add not in candidate.adds and add in candidate.terms:
                self._judge(_tree(add, self.inner))

    def _carrier(self, terms: tuple[fx.Node, ...]) -> fx.Node | None:
        """Return the term that all others are made from by real work."""
        for term in terms:
            bits = self._bits(term)
            others = [other for other in terms if other is not term]
            if bits and others and all(self.worked[other] & bits for other in others):
                return term
        return None

    def _bits(self, term: fx.Node) -> int:
        """Return the bits of the term and of what it is a cast or a constant multiple of."""
        bits = 0
        for node in _peel(term):
            bits |= self.bit[node]
        return bits

    def _accept(self, tree: _Tree, carrier: fx.Node) -> bool:
        """Keep the tree as a connection, unless something speaks against it; tell which."""
        branches = tuple(term for term in tree.terms if term is not carrier)
        chain = tuple(add for add in tree.adds if _holds(add, carrier, self.inner))
        peeled = list(_peel(carrier))
        root = next(node for node in peeled if any(self.worked[b] & self.bit[node] for b in branches))
        first = self.taken.get(peeled[-1])
        axis = describe.feature_axis(root, branches, self.order)
        if not self.overwritten.isdisjoint({*tree.adds, *peeled}):
            self._reject(tree.root, "in-place")
        elif first is not None and self.worked[tree.root] & self.bit.get(first.total, 0):
            self._reject(tree.root, "nested", first.source)
        elif axis is None:
            self._reject(tree.root, "feature-axis")
        else:
            owner, label = self._label(tree.root, branches[0])
            kind, source = describe.kind(tree.root, root, branches, self.order), location(tree.root)
            residual = Residual(tree.root, carrier, root, branches, chain, kind, owner, label, source, axis)
            self.taken.setdefault(peeled[-1], residual)
            self.residuals.append(residual)
            for add in tree.adds:
                if add not in chain:
                    self._reject(add, "branch-sum", location(tree.root))
            return True
        return False

    def _label(self, total: fx.Node, branch: fx.Node) -> tuple[str, str]:
        """Return owner and label of a site; a label that clashes is numbered in program order."""
        owner = self.context.namer.owner(total)
        label = describe.label(branch, owner, self.context.namer) or f"line{location(total).rpartition(':')[2]}"
        count = self.labels[owner, label]
        self.labels[owner, label] += 1
        return owner, f"{label}_{count}" if count else label

    def _why_not(self, node: fx.Node) -> str:
        a, b = _operands(node)
        bits = [self._bits(x) for x in (a, b)]
        related = self.above[b] & bits[0] or self.above[a] & bits[1]
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
        for arg in _operands(node):
            if arg in inner:
                walk(arg)
            else:
                terms.append(arg)

    walk(root)
    return _Tree(root, tuple(adds), tuple(terms))


def _holds(add: fx.Node, carrier: fx.Node, inner: set[fx.Node]) -> bool:
    """Tell whether the carrier is a term below this add."""
    return any(arg is carrier or (arg in inner and _holds(arg, carrier, inner)) for arg in _operands(add))


def _operands(add: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Return the two tensors that an add adds."""
    a, b = add.args[:2]
    assert isinstance(a, fx.Node)  # is_add saw two nodes
    assert isinstance(b, fx.Node)
    return a, b


def _peel(node: fx.Node) -> Iterator[fx.Node]:
    """Iterate over the node and what it is a cast or a constant multiple of."""
    yield node
    while optable.name(node) in optable.CAST | _SCALES:
        tensors = [arg for arg in node.args if isinstance(arg, fx.Node) and value(arg) is not None]
        # a cast or multiple of a tensor is a tensor, so both have a value
        if len(tensors) != 1 or value(tensors[0]).shape != value(node).shape:  # type: ignore[union-attr]
            return
        node = tensors[0]
        yield node
