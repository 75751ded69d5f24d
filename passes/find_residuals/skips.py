"""What stands between a term of a sum and the tensor that it passes on."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

from torch import Tensor, fx

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import operands, traced, value

_SCALES = frozenset("mul div truediv contiguous clone".split())
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
_BEHIND_A_PROJECTION = _AROUND_A_PROJECTION | _SCALES | _SHIFTS
_LAYERS = optable.CONV | {"linear"}  # what a second layer of a shortcut is; a product with a table is a score


class Skips:
    """Walks from a term back to the tensors that it may pass on."""

    def __init__(
        self, static: set[fx.Node], constant: Collection[fx.Node] = (), steps: Collection[fx.Node] = ()
    ) -> None:
        """Take what depends on parameters alone, on numbers alone, and what picks a step of a sequence."""
        self.static, self.constant, self.steps = static, constant, steps
        self._peeled: dict[fx.Node, tuple[fx.Node, ...]] = {}

    def peel(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return the node and what it is a cast, a multiple or a shift of, by constants or parameters.

        A shift is a number per feature at most: a table of positions starts another trunk.
        """
        found = self._peeled.get(node)
        if found is None:
            found = self._peeled[node] = tuple(self._steps_back(node))
        return found

    def _steps_back(self, node: fx.Node) -> Iterator[fx.Node]:
        yield node
        while (op := optable.name(node)) in optable.CAST | _SCALES | _SHIFTS:
            fixed = [arg for arg in node.all_input_nodes if arg in self.constant and _is_per_feature(arg)]
            below = self._data(node, fixed) or self._data(node)
            # a cast or multiple of a tensor is a tensor, so both have a value
            if below is None or value(below).shape != value(node).shape:  # type: ignore[union-attr]
                return
            if op in ("div", "truediv") and node.args[0] is not below:
                return
            if op in _SHIFTS:
                others = [arg for arg in node.all_input_nodes if arg is not below]
                if not others or not all(map(_is_per_feature, others)):
                    return
            node = below
            yield node

    def is_learned(self, node: fx.Node, root: fx.Node) -> bool:
        """Tell whether a parameter scales or shifts the node on its way from the root that it is peeled to."""
        steps = itertools.takewhile(lambda step: step is not root, self.peel(node))
        return any(arg in self.static for step in steps for arg in step.all_input_nodes)

    def reshaped(self, node: fx.Node) -> Iterator[fx.Node]:
        """Iterate over what the node is a slice, view or pool of; a moving average, a trend, is none."""
        steps = list(self._reshaped(node))
        return iter([] if any(map(_is_moving_average, (node, *steps))) else steps)

    def _reshaped(self, node: fx.Node) -> Iterator[fx.Node]:
        *_, end = self.peel(node)
        if self.is_learned(node, end):
            return
        while optable.name(end) in _RESHAPES | _SCALES and end not in self.steps:
            below = self._data(end)
            if below is None:
                return
            yield below
            end = below

    def joined(self, node: fx.Node) -> Iterator[fx.Node]:
        """Iterate over the parts that the node is a concatenation of, and what these are a slice, view or pool of."""
        *_, end = self.peel(node)
        while optable.name(end) in optable.SHUFFLE and (below := self._data(end)) is not None:
            end = below
        for part in end.all_input_nodes if optable.name(end) in ("cat", "pad") else ():
            steps = list(self.reshaped(part))
            yield from [part, *steps] if steps or not self.is_pooled(part) else []

    def gated(self, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Iterate over the tensors that the node may be a multiple of by a gate made from data, each with its gate."""
        end = self.peel(node)[-1]
        made, factors = value(end), optable.operand_values(end)
        if optable.name(end) != "mul" or made is None or any(tensor is None for tensor in factors):
            return
        a, b = operands(end)
        for (kept, gate), tensor in zip(((a, b), (b, a)), factors, strict=True):
            if tensor is not None and tensor.shape == made.shape:
                yield kept, gate

    def ungated(self, node: fx.Node, gate: fx.Node) -> fx.Node:
        """Return what the node is a multiple of by the same gate, or by what the gate leaves; else the node."""
        core = self._core(gate)
        return next((kept for kept, other in self.gated(node) if self._core(other) is core), node)

    def _core(self, gate: fx.Node) -> fx.Node:
        """Return what a gate is a view, cast, multiple or complement of."""
        while optable.name(gate) in optable.VIEW | optable.CAST | _SCALES | _SHIFTS | {"neg", "rsub"}:
            below = self._data(gate)
            if below is None:
                break
            gate = below
        return gate

    def is_pooled(self, node: fx.Node) -> bool:
        """Tell whether the node is a pool of something, as the trends are whose sum a decomposition keeps."""
        return any(optable.name(step) in optable.POOL for step in (node, *self._reshaped(node)))

    def projected(self, node: fx.Node) -> Iterator[fx.Node]:
        """Iterate over what the node is learned linear maps or convolutions of, perhaps pooled or normed."""
        below: fx.Node | None = node
        found = False
        while below is not None:
            op = optable.name(below)
            if op == "cat" and not found:
                for part in below.all_input_nodes:
                    yield from self.projected(part)
                return
            layer = op in (_LAYERS if found else optable.CONTRACTION)
            if below in self.steps or (layer and self.static.isdisjoint(below.all_input_nodes)):
                return
            if not layer and op not in (_AROUND_A_PROJECTION if found else _BEHIND_A_PROJECTION):
                return
            found = found or layer
            below = self._data(below)
            if found and below is not None:
                yield below

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

    def _data(self, node: fx.Node, but: Collection[fx.Node] = ()) -> fx.Node | None:
        """Return the one input that is no parameter; none where there are several. Norms have buffers beside it."""
        if optable.name(node) in optable.NORM:
            return node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        inputs = [a for a in node.all_input_nodes if a not in self.static and a not in but and _holds_tensors(a)]
        return inputs[0] if len(inputs) == 1 else None


def _is_moving_average(node: fx.Node) -> bool:
    """Tell whether the node pools without making fewer of what it reads."""
    stride = optable.argument(node, 2, "stride") if optable.name(node) in optable.POOL else None
    return stride == 1 or (isinstance(stride, (tuple, list)) and set(stride) == {1})


def _is_per_feature(node: fx.Node) -> bool:
    """Tell whether a parameter or constant holds a number per feature at most."""
    tensor = value(node)
    return tensor is None or sum(size != 1 for size in tensor.shape) <= 1


def _holds_tensors(node: fx.Node) -> bool:
    return isinstance(traced(node), (Tensor, tuple, list)) and not optable.is_discrete(node)
