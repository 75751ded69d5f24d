"""Activation checkpoints: their bodies become part of the graph, as nodes that are tagged for recomputation."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.checkpoint import CheckpointPolicy, checkpoint

from mhc_compile.errors import UnsupportedModelError
from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.effects.modes import Modes
from mhc_compile.passes.graph.walk import graph_of, nodes_within, source_of

_OP = torch.ops.higher_order.tag_activation_checkpoint  # what Dynamo makes of torch.utils.checkpoint
_POLICY = "_checkpoint_context_fn"  # in the metadata of a body whose ops are not all recomputed
_TAGS = ("recompute", "ac_graph_id")  # in the metadata of nodes: what AOTAutograd's partitioner goes by


def splice(gm: fx.GraphModule) -> None:
    """Replace each activation checkpoint by its body, in place.

    Before:                                             After:
        y = tag_activation_checkpoint(body, x, w)           f = linear(x, w)    tagged
        z = y[0]                                            z = x + f           tagged
    with body(a, b): return (a + linear(a, b),)

    The tags are those that the op itself leaves on what AOTAutograd traces, so the same is recomputed. Of a checkpoint
    inside a checkpoint the outer one decides, as it does there.

    Raises:
        UnsupportedModelError: residual adds hide behind a selective policy, which such tags cannot express.
    """
    numbers = itertools.count()
    while found := [node for node in _checkpoints(gm) if not _selective(node)]:
        for node in found:
            _inline(gm, node, {"recompute": CheckpointPolicy.PREFER_RECOMPUTE, "ac_graph_id": next(numbers)})
        gm.delete_all_unused_submodules()


def tags(node: fx.Node) -> dict[str, Any]:
    """Return what tells the partitioner whether to recompute the node; empty outside of checkpoints."""
    return {key: node.meta[key] for key in _TAGS if key in node.meta}


def untag(gm: fx.GraphModule, inputs: Iterable[Any]) -> None:
    """Take the tags off what no backward will make again, in place, as the op itself leaves none there.

    That is what runs with gradients off, and everything where nothing that comes in needs a gradient. In a graph
    without a backward AOTAutograd refuses tags on what draws random numbers, attention among it.

    Args:
        gm: a rewritten graph, of a frame that starts in the gradient mode of now.
        inputs: the graph's inputs.
    """
    needed = any(isinstance(each, Tensor) and each.requires_grad for each in (*inputs, *gm.parameters()))
    now = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    modes = Modes(list(gm.graph.nodes))
    for node in gm.graph.nodes:
        if needed and modes.records(node, now):
            continue
        for each in (node, *nodes_within(graph_of(node))):
            for key in _TAGS:
                each.meta.pop(key, None)


def bodies(gm: fx.GraphModule) -> Iterator[tuple[str, fx.GraphModule]]:
    """Iterate over the graphs that ops of this graph run, by their names in the module."""
    modules = dict(gm.named_modules(remove_duplicate=False))
    for name in {str(node.target): None for node in gm.graph.find_nodes(op="get_attr")}:
        body = modules.get(name)
        if isinstance(body, fx.GraphModule):
            yield name, body


def run_eagerly(gm: fx.GraphModule) -> fx.GraphModule:
    """Let checkpoints run without a compiler: the op alone would recompute dropout with other random numbers."""
    for node in _checkpoints(gm):
        if _POLICY not in _body(node).meta:
            node.target, node.kwargs = checkpoint, {**node.kwargs, "use_reentrant": False}
    gm.recompile()
    return gm


def _checkpoints(gm: fx.GraphModule) -> list[fx.Node]:
    return [node for op in (_OP, checkpoint) for node in gm.graph.find_nodes(op="call_function", target=op)]


def _selective(node: fx.Node) -> bool:
    """Tell whether a policy chooses what is recomputed; refuse one that hides what we are to rewrite."""
    body = _body(node)
    if _POLICY not in body.meta:
        return False
    if any(optable.is_add(inner) or inner.target is torch.ops.mhc.site.default for inner in body.graph.nodes):
        raise UnsupportedModelError(
            f"{source_of(node)} runs residual connections under torch.utils.checkpoint with a context_fn (selective"
            " checkpointing), whose policy would be lost in rewriting them: leave context_fn out there, so that the"
            " whole body is recomputed, or do not checkpoint it"
        )
    return True


def _body(node: fx.Node) -> fx.GraphModule:
    """Return the graph that a checkpoint runs."""
    named, *_ = node.args
    body = graph_of(named)
    assert body is not None  # Dynamo names it by a get_attr
    return body


def _inline(gm: fx.GraphModule, node: fx.Node, tagged: dict[str, Any]) -> None:
    body, tagged = _body(node), tagged | tags(node)
    named, *given = node.args
    copies: Any = dict(zip(body.graph.find_nodes(op="placeholder"), given, strict=True))
    inputs = set(copies)
    with gm.graph.inserting_before(node):
        returned: Any = gm.graph.graph_copy(body.graph, copies)
    for old in body.graph.nodes:
        if old in copies and old not in inputs:
            copies[old].meta.update(tagged)
            if old.op == "get_attr":
                copies[old].target = _adopt(gm, operator.attrgetter(str(old.target))(body), tagged)
    for user in list(node.users):
        _, index = user.args  # of a getitem: the op returns a tuple
        user.replace_all_uses_with(returned[index])
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)
    if isinstance(named, fx.Node) and not named.users:
        gm.graph.erase_node(named)


def _adopt(gm: fx.GraphModule, held: Any, tagged: dict[str, Any]) -> str:
    """Give the module what a body held, under a name of its own; what ops run inside of it has the tags too."""
    name = next(name for i in itertools.count() if not hasattr(gm, name := f"checkpointed_{i}"))
    setattr(gm, name, held)
    for node in nodes_within(held):
        node.meta.update(tagged)
    return name
