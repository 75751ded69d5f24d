"""When the stages of a pipeline send what they have made.

DualPipeV pairs a forward with a backward. Torch computes one behind the other and sends what both have made behind the
second, so that the streams of the first wait for a backward that has no need of them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from mhc_compile.errors import ConfigError

Schedule = TypeVar("Schedule")

_SENT_AS = {"F": "SEND_F", "B": "SEND_B", "I": "SEND_B"}  # what forwards, backwards and backwards of inputs make


def send_early(schedule: Schedule) -> Schedule:
    """Let a pipeline schedule send what the first of two paired chunks has made before it computes the second.

    Then streams are under way while a backward computes (arXiv 2512.24880, Section 4.3.3). Of torch's schedules
    DualPipeV has pairs (OVERLAP_F_B), and the others stay as they are, as does one whose pairs a function of your own
    runs (`register_custom_function`). Messages keep their order, and what is computed does not change.

    Args:
        schedule: one of `torch.distributed.pipelining`; every process gives its own.

    Returns:
        The same schedule.

    Raises:
        ConfigError: it is no such schedule.
    """
    from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle

    if not isinstance(schedule, PipelineScheduleMulti | PipelineScheduleSingle):
        raise ConfigError(
            f"send_early takes a schedule of torch.distributed.pipelining, such as ScheduleDualPipeV(stages, count),"
            f" and not a {type(schedule).__name__}"
        )
    held: Any = schedule
    tables = getattr(held, "pipeline_order_with_comms", None)
    run_by_others = {kind.value for kind in getattr(held, "_comp_type_to_function_map", ())}
    if tables and "OVERLAP_F_B" not in run_by_others:
        held.pipeline_order_with_comms = {rank: [*_apart(actions)] for rank, actions in tables.items()}
    return schedule


def _apart(actions: Iterable[Any]) -> Iterator[Any]:
    """Put the message of a pair's first chunk between the two, with the receipts in front of it.

    Before: (4F1;1B0), 4SEND_F1, 1SEND_B0       After: 4F1, 4SEND_F1, 1B0, 1SEND_B0
    """
    left = deque(actions)
    while left:
        action = left.popleft()
        count = _messages_of_the_first(action, left)
        if count:
            first, *others = action.sub_actions
            yield from (first, *(left.popleft() for _ in range(count)), *others)
        else:
            yield action


def _messages_of_the_first(action: Any, behind: Iterable[Any]) -> int:
    """Return how many messages can go before a pair's second chunk; 0 where the first sends none, or it is no pair."""
    if action is None or not action.sub_actions:
        return 0
    first = action.sub_actions[0]
    for count, message in enumerate(itertools.takewhile(_is_message, behind), 1):
        kind = message.computation_type.value
        if kind.startswith("SEND"):
            same = (message.stage_index, message.microbatch_index) == (first.stage_index, first.microbatch_index)
            return count if same and kind == _SENT_AS.get(first.computation_type.value) else 0
    return 0


def _is_message(action: Any) -> bool:
    return action is not None and action.computation_type.value.startswith(("SEND", "RECV"))
