"""Slices: which nodes hold a part of a tensor, and which part."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from torch import fx

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import value

_SPLITS = frozenset("unbind split chunk split_with_sizes tensor_split".split())
_ITEM = re.compile(r"(L_.*)_(\d+)_")  # how Dynamo names inputs that come in a list
_CUTS = frozenset("select narrow slice".split())


class Slice(NamedTuple):
    """A part of a tensor.

    Attributes:
        whole: the tensor, before it was moved, merged or cast; of an input that is an item of a list, the list's name.
        which: says which part; two nodes with the same hold the same.
        is_step: True where an axis is gone: one step of a sequence.
    """

    whole: fx.Node | str
    which: str
    is_step: bool


def slices(nodes: Iterable[fx.Node], fixed: set[fx.Node]) -> dict[fx.Node, Slice]:
    """Return the slices of tensors that data made, where several parts of one tensor are read."""
    found: dict[fx.Node, Slice] = {}
    parts: dict[fx.Node | str, set[str]] = {}
    for node in nodes:
        part = _slice(node)
        if part is not None and node not in fixed and part.whole not in fixed:
            found[node] = part
            parts.setdefault(part.whole, set()).add(part.which)
    return {node: part for node, part in found.items() if len(parts[part.whole]) > 1}


def _slice(node: fx.Node) -> Slice | None:
    if node.op == "placeholder" and (item := _ITEM.fullmatch(str(node.target))) is not None:
        return Slice(item[1], item[2], is_step=True)
    op, source = optable.name(node), node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or op not in _CUTS | {"getitem"}:
        return None
    how: tuple[object, ...] = (op, node.args[1:], node.kwargs)
    made, given = value(node), value(source)
    step = optable.name(source) == "unbind" or (made is not None and given is not None and made.dim() < given.dim())
    if optable.name(source) in _SPLITS:
        how = (optable.name(source), source.args[1:], source.kwargs, node.args[1:])
        source = source.args[0]
    elif given is None:
        return None
    while isinstance(source, fx.Node) and source.args and optable.name(source) in optable.SHUFFLE | optable.CAST:
        source = source.args[0]
    return Slice(source, repr(how), step) if isinstance(source, fx.Node) else None
