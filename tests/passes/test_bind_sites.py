"""Markers become bindings: in a graph, in a checkpoint's body, and where they cannot."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from mhc_compile.capture.graphs import copy_graph
from mhc_compile.errors import NarrowParametersError, SiteNotFoundError
from mhc_compile.passes import ANALYSIS
from mhc_compile.passes.base import Known
from mhc_compile.passes.bind_sites import MARKER, Bindings, BindSites
from mhc_compile.passes.graph import checkpoints
from mhc_compile.passes.runner import run
from tests.nets.structures import C, Layer, graph, mark, marked, ops, request, tokens


def two_sites(self: Layer, x: Tensor) -> Tensor:
    x = x + self.proj(self.norm(x))
    return x + self.mlp(x)


def bound(gm: fx.GraphModule) -> Bindings:
    return run([BindSites()], gm, request())[Bindings]


def test_markers_become_bindings_and_go() -> None:
    plain = graph(Layer(two_sites), tokens())
    gm = marked(plain)
    assert ops(gm) == ["site", "site", *ops(plain)]
    found = bound(gm)
    assert ops(gm) == ops(plain)
    told = [(binding.label, binding.owner, binding.title, binding.entry) for binding in found]
    assert told == [("proj", "", "proj", True), ("mlp", "", "mlp", False)]
    (_, mlp) = found
    parameters = mlp.parameters
    assert [node.name for node in vars(parameters).values()] == ["site_1_0", "site_1_1", "site_1_2", "site_1_3"]


def test_eight_tensors_are_a_site_and_its_head() -> None:
    proj, mlp = bound(marked(graph(Layer(two_sites), tokens()), readout="learned"))
    assert proj.head is None
    assert mlp.head is not None
    names = [[node.name for node in vars(each).values()] for each in (mlp.parameters, mlp.head)]
    assert names == [[f"site_1_{i}" for i in part] for part in (range(4), range(4, 8))]


def test_a_graph_without_markers_binds_nothing() -> None:
    assert bound(graph(Layer(two_sites), tokens())) == Bindings({})


def test_the_model_may_know_a_site_by_a_longer_name() -> None:
    gm = marked(graph(Layer(two_sites), tokens()))
    asked = dataclasses.replace(request(), known=lambda phi: Known(f"layers.3.{phi.name}", 0, 0))
    found = run([BindSites()], gm, asked)[Bindings]
    assert [binding.title for binding in found] == ["layers.3.site_0_0", "layers.3.site_1_0"]


@pytest.mark.parametrize("name", ["site_1_2", "site_1_4"], ids=["site", "head"])
def test_parameters_in_16_bits_are_refused(name: str) -> None:
    gm = marked(graph(Layer(two_sites), tokens()), readout="learned")
    node = next(node for node in gm.graph.nodes if node.name == name)
    node.meta["example_value"] = node.meta["example_value"].bfloat16()
    with pytest.raises(NarrowParametersError, match=r"'mlp' reach this graph as torch\.bfloat16.*shard_sites"):
        bound(gm)


class Checkpointed(nn.Module):
    """A layer whose sum stands in a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer(two_sites)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.layer, x, use_reentrant=False)
        return out


def with_a_marker_inside() -> fx.GraphModule:
    """The graph of a checkpoint whose body holds a marker of four of its inputs."""
    traced: list[fx.GraphModule] = []

    def keep(gm: fx.GraphModule, inputs: object) -> fx.GraphModule:
        traced.append(copy_graph(gm))
        return gm

    torch.compile(Checkpointed(), backend=keep)(tokens(c=C))
    (body,) = dict(checkpoints.bodies(traced[0])).values()
    inputs = body.graph.find_nodes(op="placeholder")
    mark(body, "proj", inputs[:4], list(body.graph.nodes)[-2], entry=True)
    return traced[0]


def test_a_marker_in_a_checkpoint_counts_once_its_body_is_spliced_in() -> None:
    gm = with_a_marker_inside()
    found = run(ANALYSIS[:2], gm, request())[Bindings]
    assert [binding.label for binding in found] == ["proj"]
    assert not gm.graph.find_nodes(op="call_function", target=MARKER)


def test_a_marker_in_a_graph_inside_the_graph_is_refused() -> None:
    with pytest.raises(SiteNotFoundError, match=r"an op with a graph of its own, such as torch\.cond"):
        bound(with_a_marker_inside())
