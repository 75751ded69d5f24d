"""The runner: contracts of passes, errors, timings and what it logs."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar

import pytest
import torch
from torch import fx

from mhc_compile.errors import PassError, PlanMismatchError
from mhc_compile.passes import ANALYSIS, PIPELINE, Plan, Request, Results
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.runner import run
from tests.nets.structures import Layer, graph, marked, planned, request, tokens


@dataclasses.dataclass(frozen=True)
class Do:
    """A pass that does what a test wants."""

    work: Callable[[fx.GraphModule], object]
    name: ClassVar[str] = "do"
    rewrites: ClassVar[bool] = True

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> object:
        return self.work(gm)


class Look(Do):
    """A pass that says it only looks."""

    rewrites: ClassVar[bool] = False


@pytest.fixture
def gm() -> fx.GraphModule:
    return graph(Layer(lambda self, x: x + self.proj(x)), tokens())


def remove_the_add(gm: fx.GraphModule) -> None:
    add = list(gm.graph.nodes)[-2]
    add.replace_all_uses_with(add.all_input_nodes[0])
    gm.graph.erase_node(add)


def misplace(gm: fx.GraphModule) -> None:
    linear, add = list(gm.graph.nodes)[-3:-1]
    add.append(linear)
    gm.graph.call_function(torch.sin, (linear,))


def crash(gm: fx.GraphModule) -> None:
    raise KeyError("lost")


def refuse(gm: fx.GraphModule) -> None:
    raise PlanMismatchError("not this graph")


def test_an_analysis_must_not_change_the_graph(gm: fx.GraphModule) -> None:
    with pytest.raises(PassError, match=r"do is an analysis, but changed the graph: -1 add"):
        run([Look(remove_the_add)], gm, request())


def test_a_rewrite_may(gm: fx.GraphModule) -> None:
    results = run([Do(remove_the_add)], gm, request())
    assert results.times[0].nodes == len(gm.graph.nodes)


def test_a_broken_graph_is_found(gm: fx.GraphModule) -> None:
    with pytest.raises(PassError, match=r"pass do failed on this graph .*before it has been defined"):
        run([Do(misplace)], gm, request())


def test_a_crash_names_the_passes_before(gm: fx.GraphModule) -> None:
    with pytest.raises(PassError, match=r"pass do failed on this graph \('lost'\); passes before it: canonicalize"):
        run([ANALYSIS[0], Do(crash)], gm, request())
    with pytest.raises(PassError, match="passes before it: none"):
        run([Do(crash)], gm, request())


def test_what_a_pass_tells_the_user_is_left_as_it_is(gm: fx.GraphModule) -> None:
    with pytest.raises(PlanMismatchError, match=r"^not this graph$"):
        run([Do(refuse)], gm, request())


NAMES = "canonicalize bind-sites find-residuals plan-streams widen fuse-seams plan-recompute inline".split()


def test_times(gm: fx.GraphModule) -> None:
    made = marked(gm)
    times = run(PIPELINE, made, planned()).times
    assert [each.name for each in times] == NAMES
    assert all(each.seconds >= 0 for each in times)
    assert times[-1].nodes == len(made.graph.nodes)


@dataclasses.dataclass(frozen=True)
class Word:
    """A result."""

    text: str


def test_what_a_rewrite_returns_stays(gm: fx.GraphModule) -> None:
    results = run([Do(lambda gm: Word("a")), Do(remove_the_add)], gm, request())
    assert results[Word].text == "a"


def test_what_an_analysis_returns_is_gone_after_a_rewrite(gm: fx.GraphModule) -> None:
    """Its nodes may be gone."""
    look, rewrite = Look(lambda gm: Word("a")), Do(lambda gm: None)
    assert run([look], gm, request())[Word].text == "a"
    with pytest.raises(PassError, match=r"there is no Word: .* the graph was rewritten since"):
        run([look, rewrite], gm, request())[Word]
    with pytest.raises(PassError, match="there is no Plan"):
        run(PIPELINE, marked(gm), planned())[Plan]


def test_facts_are_made_anew_after_a_rewrite(gm: fx.GraphModule) -> None:
    before = len(run([Look(lambda gm: None)], gm, request())[GraphFacts].order)
    assert len(run([Do(remove_the_add)], gm, request())[GraphFacts].order) == before - 1


def test_log(gm: fx.GraphModule, caplog: pytest.LogCaptureFixture) -> None:
    made = marked(gm)
    with caplog.at_level(logging.INFO, logger="mhc_compile.passes.runner"):
        run(PIPELINE, made, planned())
    lines = [record.getMessage() for record in caplog.records if record.name == "mhc_compile.passes.runner"]
    assert [line.split()[0] for line in lines] == [f"{number}.{name}" for number, name in enumerate(NAMES)]
    assert lines[2].endswith("ms: graph unchanged")
    assert lines[4].endswith("ms: -1 add, +1 coefficients, +1 expand, +3 getitem, +1 read, +1 readout, +1 write")


def test_graphs_are_dumped_at_debug_level(gm: fx.GraphModule, caplog: pytest.LogCaptureFixture) -> None:
    made = marked(gm)
    with caplog.at_level(logging.DEBUG, logger="mhc_compile.passes.runner"):
        run(PIPELINE, made, planned())
    dumps = [record.getMessage() for record in caplog.records if record.getMessage().startswith("mhc_")]
    assert [dump.split()[0] for dump in dumps][4] == "mhc_4_widen"
    assert "torch.ops.mhc.write" in dumps[4]
    assert "torch.ops.mhc.write" not in dumps[3]


def work(layers: int) -> int:
    """How many instructions of Python the analysis of so many layers executes: time without a clock."""
    count = 0

    def step(self: Layer, x: torch.Tensor) -> torch.Tensor:
        for _ in range(layers):
            x = x + self.mlp(self.norm(x))
        return x

    def see(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return see

    made, before = graph(Layer(step), tokens()), sys.gettrace()
    sys.settrace(see)
    try:
        run(ANALYSIS, made, request())
    finally:
        sys.settrace(before)
    return count


def test_work_is_linear_in_the_number_of_layers() -> None:
    """Once for each node: what looks at pairs of nodes does not compile models of a thousand layers."""
    few, more, most = (work(layers) for layers in (10, 20, 40))
    assert most - more < 2.2 * (more - few)
