"""What a view of tokens `[..., C]` is on streams `[..., n, C]`, against the view of every stream."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from mhc_compile.passes.graph import views
from tests.nets.structures import C, Layer, Step, graph, tokens

N = 3


def last(step: Step) -> fx.Node:
    gm = graph(Layer(step), tokens())
    return [node for node in gm.graph.nodes if node.op in ("call_function", "call_method")][-1]


@pytest.mark.parametrize(
    ("step", "call"),
    [
        pytest.param(lambda _, x: x.view(-1, C), ("reshape", ((-1, N, C),)), id="x.view(-1, C)"),
        pytest.param(lambda _, x: x.reshape((5, 2, C)), ("reshape", ((5, 2, N, C),)), id="x.reshape((5, 2, C))"),
        pytest.param(lambda _, x: x.transpose(0, -2), ("transpose", (0, 1)), id="x.transpose(0, -2)"),
        pytest.param(lambda _, x: x.permute(1, 0, 2), ("permute", (1, 0, 2, 3)), id="x.permute(1, 0, 2)"),
        pytest.param(lambda _, x: x.flatten(0, -2), ("flatten", (0, 1)), id="x.flatten(0, -2)"),
        pytest.param(lambda _, x: x.unsqueeze(-3), ("unsqueeze", (1,)), id="x.unsqueeze(-3)"),
        pytest.param(lambda _, x: x[:, 1:3], ("__getitem__", ((slice(None), slice(1, 3)),)), id="x[:, 1:3]"),
    ],
)
def test_a_view_of_tokens_is_a_view_of_streams(step: Step, call: views.Call) -> None:
    found = views.on_streams(last(step), N)
    assert found is not None
    assert (found[0], str(found[1])) == (call[0], str(call[1]))
    streams = torch.randn(2, 5, N, C)
    expected = torch.stack([step(Layer(step), stream) for stream in streams.unbind(-2)], -2)
    assert torch.equal(getattr(streams, found[0])(*found[1]), expected)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(lambda _, x: x.view(2, -1), id="x.view(2, -1)"),
        pytest.param(lambda _, x: x.transpose(1, 2), id="x.transpose(1, 2)"),
        pytest.param(lambda _, x: x.permute(2, 0, 1), id="x.permute(2, 0, 1)"),
        pytest.param(lambda _, x: x.flatten(1), id="x.flatten(1)"),
        pytest.param(lambda _, x: x[..., :4], id="x[..., :4]"),
        pytest.param(lambda _, x: x[0], id="x[0]"),
        pytest.param(lambda _, x: x.unsqueeze(-1), id="x.unsqueeze(-1)"),
    ],
)
def test_a_view_that_moves_features_is_none(step: Step) -> None:
    assert views.on_streams(last(step), N) is None


def test_sizes_that_a_node_holds() -> None:
    """`canonicalize` lists them; of others nothing is known."""
    made = fx.Graph()
    x, sizes = made.placeholder("x"), made.placeholder("sizes")
    view = made.call_method("view", (x, sizes))
    held = {x: torch.empty(10, C), sizes: torch.Size([2, 5, C]), view: torch.empty(2, 5, C)}
    for node in held:
        node.meta["example_value"] = held[node]
    assert views.on_streams(view, N) is None
