"""What stands between a term of a sum and the tensor that it passes on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from torch import Tensor, fx, nn

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import value

_SCALES = frozenset("mul div truediv contiguous".split())
_SHIFTS = frozenset("add sub".split())
_RESHAPES = optable.VIEW | optable.POOL | optable.DROPOUT | optable.CAST
_AROUND_A_PROJECTION = (
    optable.POOL
    | optable.DROPOUT
    | optable.CAST
    | optable.NORM
    | optable.SHUFFLE
    | frozenset("max amax getitem getattr".split())
)


def static_nodes(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the nodes that are computed from parameters and buffers alone."""
    static: set[fx.Node] = set()
    for node in nodes:
        tensor = value(node)
        held = isinstance(tensor, nn.Parameter) or "_buffers_" in node.name  # Dynamo names inputs after their sources
        made = node.op.startswith("call") and node.all_input_nodes and static.issuperset(node.all_input_nodes)
        if made or node.op == "get_attr" or (node.op == "placeholder" and held):
            static.add(node)
    return static


class Skips:
    """Walks from a term back to the tensors that it may pass on."""

    def __init__(self, static: set[fx.Node]) -> None:
        """Take the nodes that depend on parameters alone."""
        self.static = static

    def peel(self, node: fx.Node) -> Iterator[fx.Node]:
        """Iterate over the node and what it is a cast, a multiple or a shift of, by constants or parameters."""
        yield node
        while optable.name(node) in optable.CAST | _SCALES | _SHIFTS:
            below = self._data(node)
            # a cast or multiple of a tensor is a tensor, so both have a value
            if below is None or value(below).shape != value(node).shape:  # type: ignore[union-attr]
                return
            if not all(_is_per_feature(arg) for arg in node.all_input_nodes if arg is not below):
                return
            if optable.name(node) in _SHIFTS and len(node.all_input_nodes) < 2:
                return
            node = below
            yield node

    def is_learned(self, node: fx.Node, root: fx.Node) -> bool:
        """Tell whether a parameter scales or shifts the node on its way from the root that it is peeled to."""
        steps = itertools.takewhile(lambda step: step is not root, self.peel(node))
        return any(arg in self.static for step in steps for arg in step.all_input_nodes)

    def reshaped(self, node: fx.Node) -> Iterator[fx.Node]:
        """Iterate over what the node is a slice, view or pool of."""
        *_, end = self.peel(node)
        if self.is_learned(node, end):
            return
        while optable.name(end) in _RESHAPES | _SCALES:
            below = self._data(end)
            if below is None:
                return
            yield below
            end = below

    def is_pooled(self, node: fx.Node) -> bool:
        """Tell whether the node is a pool of something, as the trends are whose sum a decomposition keeps."""
        return any(optable.name(step) in optable.POOL for step in (node, *self.reshaped(node)))

    def projected(self, node: fx.Node) -> Iterator[fx.Node]:
        """Iterate over what the node is one learned linear map or convolution of, perhaps pooled or normed."""
        below: fx.Node | None = node
        while below is not None and optable.name(below) in _AROUND_A_PROJECTION | _SCALES | _SHIFTS:
            below = self._data(below)
        if below is None or optable.name(below) not in optable.CONTRACTION:
            return
        if not any(arg in self.static for arg in below.all_input_nodes):
            return
        below = self._data(below)
        while below is not None:
            yield below
            below = self._data(below) if optable.name(below) in _AROUND_A_PROJECTION else None

    def mixed(self, node: fx.Node) -> Iterator[fx.Node]:
        """Iterate over what the node is a data-dependent mixture of, as the streams of hyper-connections are."""
        below: fx.Node | None = node
        while below is not None and optable.name(below) in optable.VIEW | optable.CAST:
            below = self._data(below)
        tensor = value(below) if below is not None else None
        if tensor is None or tensor.dim() < 4 or optable.name(below) not in optable.CONTRACTION:  # type: ignore[arg-type]
            return
        factors = [arg for arg in below.all_input_nodes if arg not in self.static]  # type: ignore[union-attr]
        if len(factors) == 2:
            yield below  # type: ignore[misc]  # it has a value
            yield from factors

    def _data(self, node: fx.Node) -> fx.Node | None:
        """Return the one input that is no parameter; none where there are several. Norms have buffers beside it."""
        if optable.name(node) in optable.NORM:
            return node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        inputs = [arg for arg in node.all_input_nodes if arg not in self.static and _holds_tensors(arg)]
        return inputs[0] if len(inputs) == 1 else None


def _is_per_feature(node: fx.Node) -> bool:
    """Tell whether a parameter holds a number per feature at most."""
    tensor = value(node)
    return tensor is None or sum(size != 1 for size in tensor.shape) <= 1


def _holds_tensors(node: fx.Node) -> bool:
    meta = node.meta.get("example_value", node.meta.get("val"))
    return isinstance(meta, (Tensor, tuple, list)) and not optable.is_discrete(node)
