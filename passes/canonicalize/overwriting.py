"""Ops that overwrite a tensor which nobody reads afterwards under another name: the same without overwriting."""

from __future__ import annotations

import operator
from functools import cached_property
from typing import Any

import torch
from torch import fx

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.effects.aliases import same_storage
from mhc_compile.passes.graph.effects.modes import Modes
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.walk import value

_OPERATORS: dict[Any, Any] = {
    getattr(operator, f"i{op}"): getattr(operator, op) for op in "add sub mul truediv pow".split()
}
_METHODS = {f"__{function.__name__}__": function for function in _OPERATORS}
# what autocast computes in fp32, but not in place
_WIDENED = frozenset("pow exp expm1 log log1p reciprocal rsqrt softplus".split())


def overwrites(node: fx.Node) -> bool:
    """Tell whether a node overwrites a tensor."""
    return optable.is_inplace(node) or (bool(node.kwargs) and node.kwargs.get("out") is not None)


def take_apart(facts: GraphFacts) -> None:
    """Let who reads an overwritten tensor behind the op read the op's result, unless somebody can tell."""
    seen = _Seen(facts)
    for node in filter(overwrites, facts.nodes):
        if seen.by_nobody(node):
            target = _target(node)
            for user in list(target.users):
                if facts.order[user] > facts.order[node]:
                    user.replace_input_with(target, node)
            _respell(node)


def _respell(node: fx.Node) -> None:
    """Give a node the target without the overwriting."""
    target = torch.add if optable.is_add(node) else _spelling(node)
    if optable.inplace_flag(node) is True:
        position = optable.INPLACE_AT[optable.name(node)]
        node.args = (*node.args[:position], *(False for _ in node.args[position:]))
    node.kwargs = {key: arg for key, arg in node.kwargs.items() if key not in ("inplace", "out")}
    if not isinstance(target, str):
        node.op = "call_function"
    node.target = target


class _Seen:
    """Who sees that a tensor of a graph, as it stands, is overwritten."""

    def __init__(self, facts: GraphFacts) -> None:
        self._facts, self._order = facts, facts.order

    @cached_property
    def _modes(self) -> Modes:
        return Modes(self._facts.nodes)

    def by_nobody(self, node: fx.Node) -> bool:
        """Tell whether nobody can see, under another name or in its gradients, that a tensor was overwritten."""
        target = _target(node)
        if not isinstance(target, fx.Node) or not (optable.is_add(node) or _spelling(node) is not None):
            return False
        result, operand = value(node), value(target)
        if result is None or operand is None or not _keeps_dtype(node, operand):
            return False
        later = {user for user in target.users if self._order[user] > self._order[node]}  # these get the result
        names = same_storage(target, but={node, *later})
        if any(alias.op in ("placeholder", "get_attr") for alias in names):
            return False
        if not self._modes.with_gradients(node) and not all(self._modes.same_gradients(a, node) for a in names):
            return False  # overwritten without gradients, a tensor keeps those that it had
        return not any(self._order[user] > self._order[node] for alias in names - {target} for user in alias.users)


def _keeps_dtype(node: fx.Node, operand: torch.Tensor) -> bool:
    """Tell whether the op gives the dtype of what it overwrites without overwriting, too."""
    if operand.dtype.itemsize < 4 and optable.name(node) in _WIDENED:
        return False
    given = [value(arg) if isinstance(arg, fx.Node) else arg for arg in (*node.args, *node.kwargs.values())]
    numbers = [arg for arg in given if isinstance(arg, (torch.Tensor, int, float, complex))]
    return all(torch.result_type(operand, arg) == operand.dtype for arg in numbers)


def _target(node: fx.Node) -> Any:
    """Return what a node overwrites."""
    if "out" in node.kwargs:
        return node.kwargs["out"] if optable.is_add(node) else None
    return node.args[0] if node.args else node.kwargs.get("input")


def _spelling(node: fx.Node) -> Any:
    """Return the op's target without the overwriting, None where there is no such spelling."""
    if node.op == "call_method":
        if node.target in _METHODS:
            return _OPERATORS[_METHODS[str(node.target)]]
        return str(node.target)[:-1] if optable.name(node) in optable.POINTWISE else None
    if node.target in _OPERATORS:
        return _OPERATORS[node.target]
    if optable.inplace_flag(node) is True:
        return node.target
    called = str(getattr(node.target, "__name__", ""))
    if optable.name(node) not in optable.POINTWISE or isinstance(node.target, torch._ops.OpOverload):
        return None
    return next((f for home in (torch, torch.nn.functional) if (f := getattr(home, called[:-1], None))), None)
