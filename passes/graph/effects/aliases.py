"""Which nodes may share memory, and which of them are overwritten."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator

import torch
from torch import fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.effects import schemas
from mhc_compile.passes.graph.walk import traced, value


def shares_with(node: fx.Node) -> set[fx.Node]:
    """Return the inputs whose memory the node may share.

    That is what the op's schemas say, and what tracing saw: a fake tensor has the storage of what it is a view of.
    Of an op that neither knows, each input.
    """
    if not node.op.startswith("call"):
        return set()
    if node.target is operator.getitem or node.target is getattr:
        return set(node.all_input_nodes)
    found: set[fx.Node] = set()
    if (optable.name(node) in optable.CAST or "dropout" in optable.name(node)) and not optable.is_inplace(node):
        found |= set(node.all_input_nodes[:1]) if _hands_its_input_on(node) else set()
    else:
        found |= set(schemas.viewed(node))
    others = [arg for arg in node.all_input_nodes if arg not in found]
    made = _storages(node) if others else set()
    if made:
        found |= {arg for arg in others if not made.isdisjoint(_storages(arg))}
    elif not schemas.is_known(node):
        found |= set(others)
    return found


def same_storage(node: fx.Node, but: Collection[fx.Node] = ()) -> set[fx.Node]:
    """Return the nodes that may share storage with the node, through views and in-place ops that are not in `but`."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        alias = stack.pop()
        if alias in seen or alias in but:
            continue
        seen.add(alias)
        stack += shares_with(alias)
        stack += [user for user in alias.users if alias in shares_with(user)]
    return seen


def last_changes(gm: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Return the last node that changes the memory of each node whose value may change after it was computed."""
    last: dict[fx.Node, fx.Node] = {}
    for node in reversed(gm.graph.nodes):
        for target in schemas.changed(node):
            if target not in last:  # else a later node changes all that shares with it
                last |= dict.fromkeys(same_storage(target) - last.keys(), node)
    return last


def _hands_its_input_on(node: fx.Node) -> bool:
    """Tell whether a cast or dropout may return its input: a cast to what it is, a dropout that drops nothing."""
    if optable.name(node) not in optable.CAST:
        return optable.drops_nothing(node)
    made, given = value(node), value(node.all_input_nodes[0]) if node.all_input_nodes else None
    return made is None or given is None or (made.dtype, made.device) == (given.dtype, given.device)


def _storages(node: fx.Node) -> set[StorageWeakRef]:
    """Return the storages of the fake tensors that a node stands for; none where it has no such value."""
    return set(_tensors_storages(node))


def _tensors_storages(node: fx.Node) -> Iterator[StorageWeakRef]:
    for leaf in tree_leaves(traced(node)):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
            yield StorageWeakRef(leaf.untyped_storage())
