"""Which nodes no data reaches: what parameters and buffers alone make, and constants."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx, nn

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import value

_FILLED = frozenset("ones zeros eye arange linspace full_like ones_like zeros_like new_full new_ones new_zeros".split())
_WRITTEN = frozenset("tensor scalar_tensor full new_tensor".split())


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


def constant_nodes(nodes: Iterable[fx.Node], overwritten: set[fx.Node]) -> set[fx.Node]:
    """Return the tensors that numbers and shapes alone make: no data, no parameters, no random numbers."""
    constant: set[fx.Node] = set()
    for node in nodes:
        op, inputs = optable.name(node), node.all_input_nodes
        written = op in _WRITTEN and (not inputs or (op == "new_tensor" and len(inputs) == 1))
        derived = bool(inputs and op) and constant.issuperset(inputs) and op not in optable.RANDOM
        if (op in _FILLED or written or derived) and node not in overwritten:
            constant.add(node)
    return constant
