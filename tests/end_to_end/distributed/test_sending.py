"""What a pair's first chunk makes is sent before its second; `test_pipelines` runs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import mhc_compile as mhc
from mhc_compile.errors import ConfigError

if torch.distributed.is_available():
    from torch.distributed.pipelining import _schedule_visualizer, schedules

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


def actions(text: str) -> list[Any]:
    return [None if each == "-" else schedules._Action.from_str(each) for each in text.split()]


def planned(*tables: list[Any], kind: str = "DualPipeV") -> Any:
    """A schedule of which nothing but its tables is there."""
    made: Any = object.__new__(schedules.get_schedule_class(kind))
    made.pipeline_order_with_comms, made._comp_type_to_function_map = dict(enumerate(tables)), {}
    return made


def early(text: str) -> str:
    (found,) = mhc.send_early(planned(actions(text))).pipeline_order_with_comms.values()
    return " ".join("-" if each is None else str(each) for each in found)


PAIR = "(4F1;1B0)OVERLAP_F_B"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{PAIR} 4SEND_F1 1SEND_B0 4F2", "4F1 4SEND_F1 1B0 1SEND_B0 4F2"),
        (f"4RECV_F1 {PAIR} 1RECV_B1 4SEND_F1 1SEND_B0", "4RECV_F1 4F1 1RECV_B1 4SEND_F1 1B0 1SEND_B0"),
        ("(1B0;4F1)OVERLAP_F_B 1SEND_B0 4SEND_F1", "1B0 1SEND_B0 4F1 4SEND_F1"),
        (f"{PAIR} 4SEND_F1", "4F1 4SEND_F1 1B0"),
        (f"{PAIR} 1SEND_B0 4SEND_F1", None),  # messages keep their order
        (f"{PAIR} 4F2 4SEND_F1", None),
        (f"{PAIR} 4SEND_F2 4SEND_F1", None),
        (f"{PAIR} 4RESHARD 4SEND_F1", None),
        (f"{PAIR} - 1SEND_B0", None),
        (f"4F0 4SEND_F0 {PAIR}", None),
    ],
    ids=["pair", "receipts", "backward first", "one message", "other order", "work", "other", "shards", "none", "end"],
)
def test_one_pair(before: str, after: str | None) -> None:
    assert early(before) == (after or before)


def each_alone(of: list[Any]) -> Iterator[Any]:
    for action in of:
        yield from (action.sub_actions or [action]) if action is not None else ()


@pytest.mark.parametrize("schedule", ["Interleaved1F1B", "ZBVZeroBubble", "DualPipeV"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_every_table(schedule: str, ranks: int) -> None:
    """Work keeps its order and so do messages; no pair is left whose first chunk has a message right behind it."""
    before = _schedule_visualizer.get_schedule_ops(schedule, ranks, 4 * ranks, with_comms=True)
    found = mhc.send_early(planned(*before, kind=schedule)).pipeline_order_with_comms
    assert list(found) == list(range(ranks))
    moved = 0
    for old, new in zip(before, found.values(), strict=True):
        for compute in (True, False):
            one, two = ([a for a in each_alone(each) if a.is_compute_op is compute] for each in (old, new))
            assert one == two
        moved += sum(bool(each and each.sub_actions) for each in old) - sum(bool(a and a.sub_actions) for a in new)
        for i, action in enumerate(new[:-1]):
            if action is not None and action.sub_actions:
                assert str(new[i + 1]) != "{0.stage_index}SEND_F{0.microbatch_index}".format(action.sub_actions[0])
    assert (moved > 0) is (schedule == "DualPipeV")


def test_pairs_that_others_run_stay() -> None:
    schedule = planned(actions(f"{PAIR} 4SEND_F1"))
    schedule.register_custom_function(schedules.OVERLAP_F_B, lambda *_: None)
    assert mhc.send_early(schedule) is schedule
    assert schedule.pipeline_order_with_comms == {0: actions(f"{PAIR} 4SEND_F1")}


def test_a_schedule_of_single_stages_stays() -> None:
    schedule = object.__new__(schedules.get_schedule_class("1F1B"))
    assert mhc.send_early(schedule) is schedule
    assert not vars(schedule)


def test_what_is_no_schedule() -> None:
    with pytest.raises(ConfigError, match=r"ScheduleDualPipeV\(stages, count\), and not a Linear"):
        mhc.send_early(torch.nn.Linear(2, 2))
