"""Graphs of Dynamo's: copies, and what a new input needs to be known by."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._dynamo.source import AttrSource

from mhc_compile.errors import CaptureError
from mhc_compile.passes.graph import checkpoints
from mhc_compile.passes.graph.walk import value


def without_markers(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of the graph without the markers of sites; nodes keep their metadata."""
    copied = copy_graph(gm)
    for module in (each for each in copied.modules() if isinstance(each, fx.GraphModule)):
        for node in module.graph.find_nodes(op="call_function", target=torch.ops.mhc.site.default):
            module.graph.erase_node(node)
        module.recompile()
    return copied


def copy_graph(gm: fx.GraphModule) -> fx.GraphModule:
    """Copy the graph and those that its ops run, not the tensors; Dynamo still needs its own."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(gm.graph, copies))
    graph.find_nodes(op="output")[0].meta = dict(gm.graph.find_nodes(op="output")[0].meta)
    for old, new in copies.items():
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    made = fx.GraphModule(gm, graph)
    made.meta = dict(gm.meta)
    for name in ("_param_name_to_source", "_source_to_user_stacks", "compile_subgraph_reason"):
        if hasattr(gm, name):
            setattr(made, name, getattr(gm, name))
    for name, body in checkpoints.bodies(made):
        made.set_submodule(name, copy_graph(body))
    return made


def describe_streams(streams: fx.Node, plain: fx.Node, n: int, axis: int) -> Tensor:
    """Make a new graph input known to AOTAutograd: the streams `[..., n, C]` that belong to a plain input.

    Returns:
        A fake tensor that shares the plain input's symbolic sizes.
    """
    if (given := value(plain)) is None:
        raise CaptureError(f"graph input {plain.name} has no example value")
    if hasattr(plain, "_dynamo_source"):
        streams._dynamo_source = AttrSource(plain._dynamo_source, "_mhc_streams")
    last = given.movedim(axis, -1)
    made = last.unsqueeze(-2).expand(*last.shape[:-1], n, last.shape[-1]).contiguous().detach()
    return made.requires_grad_(given.requires_grad)
