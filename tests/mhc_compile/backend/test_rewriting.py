"""One graph with markers, rewritten: a copy, what goes in and out of it, and options that contradict its sites."""

from __future__ import annotations

import json

import pytest
import torch
from torch import fx

import mhc_compile as mhc
from mhc_compile.backend.planned import Planned
from mhc_compile.backend.rewriting import config_of_markers, rewrite_graph
from mhc_compile.errors import ConfigMismatchError, PlanMismatchError
from tests.nets.chains import Chain
from tests.nets.structures import C, graph, marked, ops, tokens

CONFIG = mhc.Config(streams=3, kernels="reference")


def with_markers(*functions: dict[str, object], entry: bool | None = None) -> fx.GraphModule:
    """Two sites in a row, whose markers hold these functions, one after the other."""
    gm = marked(graph(Chain(2), tokens()), entry=entry, streams=3)
    markers = gm.graph.find_nodes(op="call_function", target=torch.ops.mhc.site.default)
    for marker, function in zip(markers, functions or (CONFIG.function(),) * 2, strict=True):
        parameters, label, _, *rest = marker.args
        marker.args = (parameters, label, json.dumps(function), *rest)
    return gm


def test_a_graph_without_markers_has_no_config() -> None:
    assert config_of_markers(graph(Chain(2), tokens()), {"streams": 3}) is None


def test_the_config_is_that_of_the_sites_with_the_options_on_top() -> None:
    found = config_of_markers(with_markers(), {"compiler": "eager", "recompute": 2})
    assert found == mhc.Config(streams=3, compiler="eager", recompute=2)
    assert config_of_markers(with_markers(), {"streams": 3, "kernels": "reference"}) == CONFIG


def test_options_that_contradict_the_sites() -> None:
    with pytest.raises(ConfigMismatchError, match=r"ask for streams=4 \(the model has 3\); drop them"):
        config_of_markers(with_markers(), {"streams": 4})


def test_sites_of_two_models() -> None:
    functions = CONFIG.function(), mhc.Config(streams=3, eps=1e-5).function()
    with pytest.raises(PlanMismatchError, match="sites made with different options; compile these models apart"):
        config_of_markers(with_markers(*functions), None)


def test_a_copy_is_rewritten() -> None:
    gm = with_markers()
    before = str(gm.graph)
    made = rewrite_graph(gm, CONFIG, Planned(whole=True))
    assert str(gm.graph) == before
    assert [op for op in ops(made.gm) if op in ("expand", "write", "readout", "site")] == [
        "expand", "write", "write", "readout"
    ]  # fmt: skip
    assert (list(made.takes), list(made.gives), list(made.examples)) == ([], [], [])
    assert [start.site for start in made.starts] == ["layers_0"]


def test_streams_that_come_from_another_graph_are_a_further_input() -> None:
    made = rewrite_graph(with_markers(entry=False), CONFIG)
    assert [port.site for port in made.takes] == ["layers_0"]
    assert [tuple(example.shape) for example in made.examples] == [(2, 5, 3, C)]
    assert len(made.starts) == 0
    assert "expand" not in ops(made.gm)


@pytest.mark.parametrize(("whole", "given"), [(True, []), (False, ["layers_1"])], ids=["whole", "part"])
def test_streams_leave_a_part_of_the_model_only(whole: bool, given: list[str]) -> None:
    made = rewrite_graph(with_markers(), CONFIG, Planned(whole=whole))
    assert [port.site for port in made.gives] == given


def test_inlined_there_are_no_ops_of_ours() -> None:
    made = rewrite_graph(with_markers(), CONFIG, inline=True)
    assert not [node for node in made.gm.graph.nodes if "mhc" in str(node.target)]
