"""One spelling of each add, and no overwriting that nobody needs."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, ClassVar

from torch import fx

from mhc_compile.passes.base import Request, Results
from mhc_compile.passes.canonicalize import fused_sums, spellings, twins
from mhc_compile.passes.graph import checkpoints, optable
from mhc_compile.passes.graph.aliases import same_storage
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.walk import value

_OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Canonicalize:
    """`torch.add(a, b)`, `a.add(b)`, `a += b` and `a.add_(b)` become `a + b`, `relu(x, inplace=True)` `relu(x)`.

    Sums that are spelt as something else become adds as well (see `spellings` and `fused_sums`), and a norm that is
    written twice, for the skip and for the branch, becomes one (see `twins`).

    An op stays in place where what it overwrites is read afterwards under another name, or belongs to the caller: then
    the overwriting is part of the function. Who reads it afterwards under the same name gets the op's result.
    Activation checkpoints go first: what their bodies hold is part of the graph (see `checkpoints.splice`).
    """

    name: ClassVar[str] = "canonicalize"
    rewrites: ClassVar[bool] = True

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> None:
        """Respell the ops of the graph."""
        checkpoints.splice(gm)
        facts = GraphFacts(gm)
        order = facts.order
        for node in list(gm.graph.nodes):
            inplace = optable.is_inplace(node)
            if inplace and not _replaceable(node, order):
                continue
            if inplace:
                _read_the_result(node, order)
            spellings.spell_out(node, order)
            fused_sums.take_apart(node, facts)
            if optable.is_add(node):
                node.op, node.target = "call_function", operator.add
                node.args, node.kwargs = node.args[:2], {}
            elif inplace:
                _respell(node)
        twins.merge(GraphFacts(gm))


def _replaceable(node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Tell whether nobody can see, under another name, that the first operand was overwritten."""
    target = node.args[0] if node.args else None
    if not isinstance(target, fx.Node) or not (optable.is_add(node) or _spelling(node) is not None):
        return False
    result, operand = value(node), value(target)
    if result is None or operand is None or result.dtype != operand.dtype:
        return False
    names = same_storage(target, but=node)
    if any(alias.op in ("placeholder", "get_attr") for alias in names):
        return False
    return not any(order[user] > order[node] for alias in names - {target} for user in alias.users)


def _read_the_result(node: fx.Node, order: dict[fx.Node, int]) -> None:
    target = node.args[0]
    assert isinstance(target, fx.Node)  # _replaceable saw it
    for user in list(target.users):
        if order[user] > order[node]:
            user.replace_input_with(target, node)


def _spelling(node: fx.Node) -> Any:
    """Return the op's target without the overwriting, None where there is no such spelling."""
    if node.op == "call_method":
        return str(node.target)[:-1] if optable.name(node) in optable.POINTWISE else None
    if node.target in _OUT_OF_PLACE:
        return _OUT_OF_PLACE[node.target]
    return node.target if optable.inplace_flag(node) is True else None


def _respell(node: fx.Node) -> None:
    target = _spelling(node)
    if optable.inplace_flag(node) is True:
        position = optable.INPLACE_AT[optable.name(node)]
        node.args = (*node.args[:position], *(False for _ in node.args[position:]))
        node.kwargs = {key: arg for key, arg in node.kwargs.items() if key != "inplace"}
    node.target = target
