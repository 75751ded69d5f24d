"""The runner: contracts of passes, errors, timings and what it logs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import fx

from mhc_compile.errors import PassError, PlanMismatchError
from mhc_compile.passes import ANALYSIS, PIPELINE, Context
from mhc_compile.passes.runner import run, timings
from tests.passes.helpers import Layer, context, graph, rewritten, tokens


@dataclasses.dataclass(frozen=True)
class Do:
    """A pass that does what a test wants."""

    work: Callable[[fx.GraphModule], object]
    name: ClassVar[str] = "do"
    rewrites: ClassVar[bool] = True

    def __call__(self, gm: fx.GraphModule, context: Context) -> None:
        self.work(gm)


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
        run([Look(remove_the_add)], gm, context())


def test_a_rewrite_may(gm: fx.GraphModule) -> None:
    run([Do(remove_the_add)], gm, context())
    assert timings()[0].nodes == len(gm.graph.nodes)


def test_a_broken_graph_is_found(gm: fx.GraphModule) -> None:
    with pytest.raises(PassError, match=r"pass do failed on this graph .*before it has been defined"):
        run([Do(misplace)], gm, context())


def test_a_crash_names_the_passes_before(gm: fx.GraphModule) -> None:
    with pytest.raises(PassError, match=r"pass do failed on this graph \('lost'\); passes before it: canonicalize"):
        run([ANALYSIS[0], Do(crash)], gm, context())
    with pytest.raises(PassError, match="passes before it: none"):
        run([Do(crash)], gm, context())


def test_what_a_pass_tells_the_user_is_left_as_it_is(gm: fx.GraphModule) -> None:
    with pytest.raises(PlanMismatchError, match=r"^not this graph$"):
        run([Do(refuse)], gm, context())


def test_timings(gm: fx.GraphModule) -> None:
    made, bound = rewritten(gm)
    run(PIPELINE, made, bound)
    assert [t.name for t in timings()] == [
        "canonicalize", "find-residuals", "plan-streams", "widen", "fuse-seams", "plan-recompute", "lower"
    ]  # fmt: skip
    assert all(t.seconds >= 0 for t in timings())
    assert timings()[-1].nodes == len(made.graph.nodes)
    timings().clear()
    assert len(timings()) == 7


def test_log(gm: fx.GraphModule, caplog: pytest.LogCaptureFixture) -> None:
    made, bound = rewritten(gm)
    with caplog.at_level(logging.INFO, logger="mhc_compile.passes.runner"):
        run(PIPELINE, made, bound)
    lines = [record.getMessage() for record in caplog.records if record.name == "mhc_compile.passes.runner"]
    assert [line.split()[0] for line in lines] == [
        "0.canonicalize", "1.find-residuals", "2.plan-streams", "3.widen", "4.fuse-seams", "5.plan-recompute", "6.lower"
    ]  # fmt: skip
    assert lines[1].endswith("ms: graph unchanged")
    assert lines[3].endswith("ms: -1 add, +1 coefficients, +1 expand, +3 getitem, +1 read, +1 readout, +1 write")


def test_graphs_are_dumped_at_debug_level(gm: fx.GraphModule, caplog: pytest.LogCaptureFixture) -> None:
    made, bound = rewritten(gm)
    with caplog.at_level(logging.DEBUG, logger="mhc_compile.passes.runner"):
        run(PIPELINE, made, bound)
    dumps = [record.getMessage() for record in caplog.records if record.getMessage().startswith("mhc_")]
    assert [dump.split()[0] for dump in dumps][3] == "mhc_3_widen"
    assert "torch.ops.mhc.write" in dumps[3]
    assert "torch.ops.mhc.write" not in dumps[2]


def test_many_layers_take_milliseconds() -> None:
    def step(self: Layer, x: torch.Tensor) -> torch.Tensor:
        for _ in range(100):
            x = x + self.mlp(self.norm(x))
        return x

    made = graph(Layer(step), tokens())
    run(ANALYSIS, made, context())
    assert sum(t.seconds for t in timings()) < 1.0
