"""What new nodes take over from those that they stand for, and what values they have."""

from __future__ import annotations

import operator

import torch
from torch import fx

from mhc_compile.passes.graph.provenance import give_value, inherited


def test_module_line_site_and_checkpoint_are_handed_on_and_nothing_else() -> None:
    node = fx.Graph().placeholder("x")
    kept = {"nn_module_stack": {"1": ("a", object)}, "stack_trace": "File", "mhc_site": "mlp", "ac_graph_id": 3}
    node.meta = {**kept, "example_value": torch.ones(2), "source_fn_stack": []}
    assert inherited(node) == kept
    assert inherited(fx.Graph().placeholder("x")) == {}


def test_a_value_is_that_of_the_op_on_values() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = torch.randn(2, 5, 8, requires_grad=True)
    streams = graph.call_function(torch.ops.mhc.expand.default, (x, 3))
    give_value(streams)
    value = streams.meta["example_value"]
    assert value.shape == (2, 5, 3, 8)
    assert not value.requires_grad
    streams.meta["example_value"] = kept = torch.ones(1)
    give_value(streams)
    assert streams.meta["example_value"] is kept


def test_a_choice_of_results_asks_for_its_op_first() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.randn(4, 6)
    parts = graph.call_function(torch.split, (x, 2))
    give_value(parts)
    first = graph.call_function(operator.getitem, (parts, 0))
    inner = graph.call_function(operator.getitem, (first, 0))
    give_value(inner)
    assert (first.meta["example_value"].shape, inner.meta["example_value"].shape) == ((2, 6), (6,))


def test_without_a_value_of_an_input_there_is_none() -> None:
    graph = fx.Graph()
    node = graph.call_function(torch.ops.mhc.expand.default, (graph.placeholder("x"), 3))
    give_value(node)
    assert "example_value" not in node.meta
