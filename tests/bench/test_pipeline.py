"""bench/pipeline: the clock against schedules whose length is known, and torch's tables against what a step must do."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch.distributed as dist
from hypothesis import given, settings
from torch.distributed.pipelining import schedules

from bench.pipeline import plan
from bench.pipeline.messages import Messages
from bench.pipeline.simulate import Costs, simulate
from bench.pipeline.tables import Table, Work, table

SCHEDULES = ("GPipe", "1F1B", "LoopedBFS", "Interleaved1F1B", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")


def unit(work: Work) -> float:
    """Every part of a stage's work takes a second."""
    return float(len(work.kinds))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_does_everything_once(schedule: str) -> None:
    steps = table(schedule, 4, 8)
    done = Counter(
        (kind, work.stage, work.microbatch) for works in steps.ranks for work in works for kind in work.kinds
    )
    kinds = ("forward", "backward_input", "backward_weight")
    assert done == Counter((kind, stage, mb) for kind in kinds for stage in range(steps.stages) for mb in range(8))
    assert all(steps.rank_of(work.stage) == rank for rank, works in enumerate(steps.ranks) for work in works)


@pytest.mark.parametrize("schedule", ["GPipe", "1F1B"])
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 8), (5, 7)])
def test_one_stage_on_each_process(schedule: str, ranks: int, microbatches: int) -> None:
    """Both take (microbatches + processes - 1) forwards and backwards; in between nobody waits."""
    step = simulate(table(schedule, ranks, microbatches), Costs(unit))
    assert step.seconds == 3 * (microbatches + ranks - 1)
    assert step.idle == pytest.approx((ranks - 1) / (microbatches + ranks - 1))


def test_zero_bubbles_wait_less() -> None:
    idle = [simulate(table(name, 4, 16), Costs(unit)).idle for name in ("1F1B", "Interleaved1F1B", "ZBVZeroBubble")]
    assert idle == sorted(idle, reverse=True)
    assert idle[-1] < idle[0] / 3


@given(message=st.floats(0, 3), schedule=st.sampled_from(SCHEDULES))
@settings(max_examples=40, deadline=None)
def test_messages_take_time(message: float, schedule: str) -> None:
    """At most their own where a process waits for each, less where they overlap, and never less than none."""
    steps = table(schedule, 2, 4)
    silent, overlapped, waiting = (
        simulate(steps, costs).seconds
        for costs in (Costs(unit), Costs(unit, message), Costs(unit, message, overlapped=False))
    )
    assert silent <= overlapped + 1e-9
    assert overlapped <= waiting + 1e-9
    assert waiting <= silent + message * 2 * 4 * steps.stages


def test_two_processes_by_hand() -> None:
    """GPipe, one microbatch: there and back, with a message each way."""
    step = simulate(table("GPipe", 2, 1), Costs(unit, 0.5))
    first, second = step.ranks
    assert [(span.start, span.end) for span in first] == [(0, 1), (5, 7)]
    assert [(span.start, span.end) for span in second] == [(1.5, 2.5), (2.5, 4.5)]


@pytest.mark.parametrize(("waits", "end"), [(True, 3.5), (False, 2.5)])
def test_what_is_sent_behind_the_next_piece(waits: bool, end: float) -> None:
    first = (Work(("forward",), 0, 0, waits), Work(("forward",), 0, 1))
    steps = Table("GPipe", 2, (first, (Work(("forward",), 1, 0),)))
    assert simulate(steps, Costs(unit, 0.5)).ranks[1][0].end == end


def test_a_table_that_waits_for_itself_is_told() -> None:
    backward = Work(("backward_input",), 0, 0)
    with pytest.raises(RuntimeError, match="GPipe waits for itself"):
        simulate(Table("GPipe", 2, ((backward,), ())), Costs(unit))


def test_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Streams cost more than hidden states, less if sent early, and a hundredth at the bandwidth that is named."""
    monkeypatch.setattr(plan, "STAGES", (4,))
    plan.main(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").exists()
    assert "DualPipeV: below" in capsys.readouterr().out
    shape = plan.Shape()
    for row in plan.rows(shape):
        plain, late, early, waiting = (row[name]["exposed"] for name in plan.CONTENDERS)
        assert plain < late
        assert early <= waiting
        assert early < late if row["schedule"] == "DualPipeV" else early == late
    steps, bandwidth = table("DualPipeV", 4, 16, early=True), plan.costs_below(shape, "DualPipeV", 4)
    costs = shape.costs(2.0, shape.streams, bandwidth)
    assert simulate(steps, costs).seconds / simulate(steps, Costs(costs.seconds)).seconds == pytest.approx(
        1.01, abs=2e-4
    )


def test_late_messages_are_received_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only once somebody waits; what is sent begins at once. Waiting is timed."""
    begun: list[int] = []

    def receive(number: int, **_: object) -> SimpleNamespace:
        begun.append(number)
        return SimpleNamespace(wait=lambda: time.sleep(0.01))

    def asked(number: int) -> list[Any]:
        return [SimpleNamespace(op=dist.irecv, tensor=number, group=None, tag=0, group_peer=0)]

    monkeypatch.setattr(dist, "irecv", receive)
    messages = Messages()
    with messages.of_a_step(late=True):
        one, two, three = (schedules._batch_p2p(asked(i)) for i in range(3))
        assert begun == []
        schedules._wait_batch_p2p(two)
        assert begun == [0, 1]
        schedules._wait_batch_p2p([*one, *three])
    assert begun == [0, 1, 2]
    assert messages.waited >= 0.03
    with messages.of_a_step(late=False):
        schedules._batch_p2p(asked(3))
    assert begun == [0, 1, 2, 3]
    assert messages.waited == 0
