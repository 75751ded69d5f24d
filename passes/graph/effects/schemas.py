"""What torch's schemas say of an op: what its result may be a view of, what it changes, whether it is a function.

An op that is called by another name than its schema's (a method, a function of torch's) is looked up by its own: all
overloads of that name count.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import graph_of

_SEEDED = torch.Tag.nondeterministic_seeded
_SELF = ("self", "input")  # the first tensor, in schemas and in Python
# functions by their schema that keep statistics, or draw random numbers inside
_STATEFUL = frozenset("batch_norm instance_norm native_batch_norm cudnn_batch_norm empty empty_like new_empty".split())
_NORMS = ("batch_norm", "instance_norm")  # in training they change statistics, of which their schemas say nothing
_OPS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)


def viewed(node: fx.Node) -> list[fx.Node]:
    """Return the inputs that the result may be a view of, or is, by the op's schemas."""
    found = _nodes(node.kwargs.get("out"))
    if optable.is_inplace(node) and not isinstance(node.target, _OPS):
        found += _given(node, 0, "self")
    for schema in (overload._schema for overload in _overloads(node)):
        returned = {name for each in schema.returns if each.alias_info for name in each.alias_info.before_set}
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and not returned.isdisjoint(argument.alias_info.before_set):
                found += _given(node, position, argument.name)
    return found


def changed(node: fx.Node) -> list[fx.Node]:
    """Return the inputs that a call node writes to."""
    if not node.op.startswith("call"):
        return []
    found = _nodes(node.kwargs.get("out")) if node.kwargs else []
    if isinstance(node.target, _OPS):
        for overload in optable.overloads(node.target):
            for position, argument in enumerate(overload._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    found += _given(node, position, argument.name)
    elif optable.is_inplace(node):
        found += _given(node, 0, "self")
    elif isinstance(node.target, torch._ops.HigherOrderOperator):
        found += _changed_inside(node)
    return found + _statistics(node)


def is_known(node: fx.Node) -> bool:
    """Tell whether torch can say what a call node does: it has schemas, or is a function of torch's or Python's."""
    return bool(_overloads(node)) or is_of_torch(node)


def is_function(node: fx.Node) -> bool:
    """Tell whether the node's result depends on its arguments' values alone, and computing it changes nothing."""
    if node.op == "get_attr":
        return True
    op = optable.name(node)
    if not node.op.startswith("call") or op in _STATEFUL | optable.DROPOUT or changed(node):
        return False
    if op in optable.LIGHT | optable.CONTRACTION:
        return True
    found = _overloads(node)
    pure = [each for each in found if not each._schema.is_mutable]
    return bool(pure) and not any(_SEEDED in each.tags for each in found)


def _overloads(node: fx.Node) -> list[torch._ops.OpOverload]:
    """Return the overloads that a call may reach."""
    target = node.target
    if isinstance(target, _OPS):
        return optable.overloads(target)
    method = node.op == "call_method"
    if not method and not str(getattr(target, "__module__", None) or "torch").startswith("torch"):
        return []
    return _called(str(target if method else getattr(target, "__name__", "")))


@functools.cache
def _called(name: str) -> list[torch._ops.OpOverload]:
    """Return the overloads of ATen's op of a name; what is looked up is kept, so no function of the user's is."""
    packet = getattr(torch.ops.aten, name, None) if name and not name.startswith("__") else None
    return optable.overloads(packet) if isinstance(packet, torch._ops.OpOverloadPacket) else []


def is_of_torch(node: fx.Node) -> bool:
    """Tell whether a call node runs an op or function of torch's own, or of Python."""
    if isinstance(node.target, _OPS):
        return all(overload.namespace in ("aten", "prims", "mhc") for overload in optable.overloads(node.target))
    home = str(getattr(node.target, "__module__", "")).partition(".")[0]
    of_torch = node.op == "call_method" or home in ("torch", "_operator", "builtins", "math")
    return of_torch and not isinstance(node.target, torch._ops.HigherOrderOperator)


def _statistics(node: fx.Node) -> list[fx.Node]:
    """Return the running statistics that a norm changes in training."""
    if optable.name(node) not in _NORMS or optable.argument(node, 5, "training") is False:
        return []
    first = 1 if getattr(node.target, "__module__", "") == "torch.nn.functional" else 3  # torch has the weights first
    return [*_given(node, first, "running_mean"), *_given(node, first + 1, "running_var")]


def _given(node: fx.Node, position: int, name: str) -> Iterator[fx.Node]:
    """Iterate over the nodes in an argument."""
    if len(node.args) > position:
        yield from _nodes(node.args[position])
    for key in _SELF if name in _SELF else (name,):
        yield from _nodes(node.kwargs.get(key))


def _nodes(argument: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(argument, found.append)
    return found


def _changed_inside(node: fx.Node) -> list[fx.Node]:
    """Return the tensors given to an op whose own graphs write to one of theirs; all of them, as for a kernel."""
    writes = "mutation" in str(node.target) or any(_writes_to_an_input(body.graph) for body in _graphs(node))
    return [arg for arg in node.all_input_nodes if graph_of(arg) is None] if writes else []


def _writes_to_an_input(graph: fx.Graph) -> bool:
    return any(
        root.op == "placeholder" for node in graph.nodes for written in changed(node) for root in _roots(written)
    )


def _roots(node: fx.Node) -> Iterator[fx.Node]:
    """Iterate over what a node of an op's own graph may be a view of in the end."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        found = stack.pop()
        if found not in seen:
            seen.add(found)
            yield found
            stack += found.all_input_nodes if _may_be_view(found) else []


def _may_be_view(node: fx.Node) -> bool:
    return bool(viewed(node)) or node.target is operator.getitem or not is_known(node)


def _graphs(node: fx.Node) -> list[fx.GraphModule]:
    """Return the graphs that an op runs."""
    held = [graph_of(arg) for arg in node.all_input_nodes]
    return [body for body in held if body is not None]
