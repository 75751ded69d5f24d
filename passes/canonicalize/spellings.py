"""What is spelt as something else: sums with a factor, a zero or a stack, norms with by-products, keywords, sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.effects import schemas
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.walk import traced, value

# norms of ATen that also return what their backward needs
_FUSED: dict[str, Callable[..., torch.Tensor]] = {
    "native_layer_norm": torch.nn.functional.layer_norm,
    "_fused_rms_norm": torch.nn.functional.rms_norm,
}
# what Dynamo makes of an attribute since torch 2.14, and the attribute
_ATTRIBUTES: dict[Any, str] = {
    torch.ops.aten.mT: "mT",
    torch.ops.aten.mH: "mH",
    torch.ops.aten.numpy_T: "T",
    torch.ops.aten.matrix_H: "H",
}
# keywords of tensors, each with its position
_POSITIONS = {"input": 0, "self": 0, "tensors": 0, "other": 1, "end": 1, "tensor1": 1, "tensor2": 2}
_BY_KEYWORD = (optable.LIGHT | optable.CONTRACTION | {"rsub"}) - {"where"}


def spell_out(node: fx.Node, facts: GraphFacts) -> None:
    """Respell a node as plain adds, where it is a sum, or as a plain norm.

    Nothing is read elsewhere than before if it is overwritten somewhere, and no copy becomes what it was a copy of.
    """
    if node.target in _ATTRIBUTES:
        node.target, node.args = getattr, (*node.args, _ATTRIBUTES[node.target])
    op = optable.name(node)
    if node.kwargs and op in _BY_KEYWORD:
        _place_arguments(node)
    if op in ("add", "sub") and "alpha" in node.kwargs and optable.terms_alike(node) is not None:
        _take_out_factor(node)
    elif op == "add" and 0 in node.args[:2]:
        _drop_zero(node, facts)
    elif op in ("sum", "mean"):
        _unstack(node, facts)
    elif op in _FUSED:
        _keep_the_norm(node, facts)
    elif op == "getattr" and node.args[1] in ("mT", "mH"):
        _transpose(node)
    elif op in optable.RESHAPE and len(node.args) == 2:
        _list_sizes(node)


def spell_in_place(node: fx.Node) -> None:
    """Respell a sum that stays in place, so that it is known for one: `a.add_(other=b, alpha=c)` as `a.add_(b * c)`."""
    if optable.name(node) in ("add", "sub") and "out" not in node.kwargs:
        _place_arguments(node)
        if "alpha" in node.kwargs and optable.terms_alike(node) is not None:
            _take_out_factor(node)


def _place_arguments(node: fx.Node) -> None:
    """`torch.add(input=a, other=b)` becomes `torch.add(a, b)`."""
    args, kwargs = list(node.args), dict(node.kwargs)
    for key, position in _POSITIONS.items():
        if key in kwargs and len(args) == position:
            args.append(kwargs.pop(key))
    node.args, node.kwargs = tuple(args), kwargs


def _take_out_factor(node: fx.Node) -> None:
    """`torch.add(a, b, alpha=c)` becomes `torch.add(a, b * c)`."""
    branch, factor = node.args[1], node.kwargs["alpha"]
    assert isinstance(branch, fx.Node)  # terms_alike saw it
    with node.graph.inserting_before(node):
        scaled = node.graph.call_function(operator.mul, (branch, factor))
    scaled.meta = {**node.meta, **example(value(branch))}
    node.args = (node.args[0], scaled)
    node.kwargs = {key: arg for key, arg in node.kwargs.items() if key != "alpha"}


def _drop_zero(node: fx.Node, facts: GraphFacts) -> None:
    """`0 + a`, with which Python's sum begins, becomes `a`."""
    terms = [arg for arg in node.args[:2] if isinstance(arg, fx.Node)]
    kept, made = (value(terms[0]), value(node)) if len(terms) == 1 else (None, None)
    alike = kept is not None and made is not None and kept.dtype == made.dtype
    if alike and facts.overwritten.isdisjoint({node, *terms}):
        node.replace_all_uses_with(terms[0])
        node.graph.erase_node(node)


def _keep_the_norm(node: fx.Node, facts: GraphFacts) -> None:
    """`native_layer_norm(x, ...)[0]` becomes `layer_norm(x, ...)`, where nobody reads the statistics."""
    readers = list(node.users)
    if not all(optable.name(reader) == "getitem" and reader.args[1] == 0 for reader in readers):
        return
    if not facts.overwritten.isdisjoint(node.all_input_nodes):
        return
    for reader in readers:
        reader.target, reader.args = _FUSED[optable.name(node)], node.args
    if readers:
        node.graph.erase_node(node)


def _transpose(node: fx.Node) -> None:
    """`x.mT` becomes `x.transpose(-2, -1)`."""
    tensor = value(node)
    if tensor is not None and tensor.is_floating_point():
        node.op, node.target, node.args = "call_method", "transpose", (node.args[0], -2, -1)


def _list_sizes(node: fx.Node) -> None:
    """`a.view(sizes)` becomes `a.view([sizes[0], sizes[1]])`, where one node holds all the sizes, as Dynamo has it."""
    sizes = node.args[1]
    held = traced(sizes) if isinstance(sizes, fx.Node) else None
    if isinstance(held, (tuple, list)):
        with node.graph.inserting_before(node):
            listed = [node.graph.call_function(operator.getitem, (sizes, i)) for i in range(len(held))]
        for made, size in zip(listed, held, strict=True):
            made.meta = {**node.meta, "example_value": size}
        node.args = (node.args[0], listed)


def _unstack(node: fx.Node, facts: GraphFacts) -> None:
    """`torch.stack([x, f(x), g(x)]).sum(0)` becomes `x + torch.stack([f(x), g(x)]).sum(0)`; a mean is divided."""
    stack = node.args[0] if node.args else None
    if not isinstance(stack, fx.Node) or optable.name(stack) != "stack" or len(stack.users) > 1:
        return
    terms, dim = stack.args[0] if stack.args else None, optable.argument(stack, 1, "dim", 0)
    if (
        optable.argument(node, 1, "dim") not in (dim, (dim,), [dim])
        or node.kwargs.keys() - {"dim"}
        or len(node.args) > 2
    ):
        return
    nodes = [term for term in terms if isinstance(term, fx.Node)] if isinstance(terms, (list, tuple)) else []
    if len(set(nodes)) < 2 or len(set(nodes)) != len(terms):  # type: ignore[arg-type]  # a list, since it held nodes
        return
    order = facts.order
    if any(schemas.changed(between) for between in facts.nodes[order[stack] : order[node]]):
        return  # the sum may read something else than the stack did
    first = min(nodes, key=order.__getitem__)
    others = [term for term in nodes if term is not first]
    if not readers(first, others, order).issuperset(others):
        return
    like = example(value(first))
    with node.graph.inserting_before(node):
        rest = others[0]
        if len(others) > 1:
            stacked = node.graph.call_function(torch.stack, (others, dim))
            held = [v for v in map(value, others) if v is not None]
            stacked.meta = {**stack.meta, **example(torch.stack([v.detach() for v in held], dim))}
            rest = node.graph.call_function(torch.sum, (stacked, dim))
            rest.meta = {**node.meta, **like}
        total = node
        if optable.name(node) == "mean":
            total = node.graph.call_function(operator.add, (first, rest))
            total.meta = {**node.meta, **like}
    if total is node:
        node.op, node.target, node.args = "call_function", operator.add, (first, rest)
    else:
        node.op, node.target, node.args = "call_function", operator.truediv, (total, len(nodes))
    node.kwargs = {}
    node.graph.erase_node(stack)


def readers(source: fx.Node, ends: list[fx.Node], order: dict[fx.Node, int]) -> set[fx.Node]:
    """Return what is computed from the source, up to the last of the ends."""
    last = max(order.get(end, -1) for end in ends)
    seen: set[fx.Node] = set()
    stack = [source]
    while stack:
        for user in stack.pop().users:
            if user not in seen and order.get(user, last) <= last:
                seen.add(user)
                stack.append(user)
    return seen


def example(tensor: torch.Tensor | None) -> dict[str, Any]:
    """Return the metadata of a node that holds a tensor."""
    return {} if tensor is None else {"example_value": tensor}
