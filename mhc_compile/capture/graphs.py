"""Graphs of Dynamo's: copies with and without markers, and new inputs."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._dynamo.source import AttrSource

from mhc_compile.errors import CaptureError
from mhc_compile.passes.graph import checkpoints
from mhc_compile.passes.graph.effects import transforms
from mhc_compile.passes.graph.layouts import sharded
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
    """Copy a graph, and the graphs that its ops run; tensors are shared. Dynamo still needs its own graph."""
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
    transforms.settle(made)
    return made


def describe_streams(streams: fx.Node, carrier: fx.Node, n: int, axis: int) -> Tensor:
    """Tell AOTAutograd of a new graph input: the streams `[..., n, C]` that come with another input, their carrier.

    Args:
        streams: the new input; it gets a source.
        carrier: the input that they come with, `[..., C]` but for the place of its feature axis.
        n: number of streams.
        axis: feature axis of the carrier.

    Returns:
        A fake tensor `[..., n, C]` of the carrier's dtype, device and symbolic sizes.

    Raises:
        CaptureError: the carrier has no example value.
    """
    if (example := value(carrier)) is None:
        raise CaptureError(f"graph input {carrier.name} has no example value")
    if hasattr(carrier, "_dynamo_source"):
        streams._dynamo_source = AttrSource(carrier._dynamo_source, "_mhc_streams")
    return copies(example, n, axis).detach().requires_grad_(example.requires_grad)


def copies(x: Tensor, n: int, axis: int) -> Tensor:
    """Return streams `[..., n, C]` that are copies of x, whose features lie on `axis`; of this process's part of it."""
    last = sharded.held(x).movedim(axis, -1)
    return last.unsqueeze(-2).expand(*last.shape[:-1], n, last.shape[-1]).contiguous()
