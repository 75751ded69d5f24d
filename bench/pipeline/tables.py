"""What every process does in a step, in order: torch's own tables of its schedules."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.distributed.pipelining import _schedule_visualizer

KINDS = {
    "F": ("forward",),
    "B": ("backward_input", "backward_weight"),
    "I": ("backward_input",),
    "W": ("backward_weight",),
}
FOLDED = ("ZBVZeroBubble", "DualPipeV")  # a process has a stage, and the one as far from the end


@dataclass(frozen=True)
class Work:
    """One piece of a process's step.

    Attributes:
        kinds: "forward", "backward_input", "backward_weight", in order; a whole backward is the latter two.
        stage: number of the stage.
        microbatch: number of the microbatch.
        waits: what it makes is sent behind the process's next piece: torch sends so what the first of a pair makes.
    """

    kinds: tuple[str, ...]
    stage: int
    microbatch: int
    waits: bool = False


@dataclass(frozen=True)
class Table:
    """A schedule on so many processes.

    Attributes:
        schedule: torch's name.
        stages: number of stages.
        ranks: what each process does.
    """

    schedule: str
    stages: int
    ranks: tuple[tuple[Work, ...], ...]

    def rank_of(self, stage: int) -> int:
        """Return the process that has a stage."""
        ranks = len(self.ranks)
        return min(stage, self.stages - 1 - stage) if self.schedule in FOLDED else stage % ranks


def table(schedule: str, ranks: int, microbatches: int, *, early: bool = False) -> Table:
    """Return what torch plans for a schedule; with two stages on each process where the schedule has several.

    Args:
        schedule: torch's name.
        ranks: number of processes.
        microbatches: their number.
        early: what the first of a pair makes is sent before the second, as by `mhc_compile.send_early`.
    """
    actions = _schedule_visualizer.get_schedule_ops(schedule, ranks, microbatches)
    made = tuple(_counted(each for action in of_rank for each in _work(action, not early)) for of_rank in actions)
    stages = 1 + max(each.stage for of_rank in made for each in of_rank)
    return Table(schedule, stages, made)


def _counted(works: Iterable[Work]) -> tuple[Work, ...]:
    """Number forwards as they come, which is their order: torch 2.13's 1F1B leaves out the last process's first."""
    counts, made = Counter[int](), []
    for work in works:
        if work.kinds == KINDS["F"]:
            made.append(dataclasses.replace(work, microbatch=counts[work.stage]))
            counts[work.stage] += 1
        else:
            made.append(work)
    return tuple(made)


def _work(action: Any, waits: bool) -> Iterator[Work]:
    """Iterate over the work of an action: none, one, or the two of a pair, of which what the first makes may wait."""
    if action is None:
        return
    if action.sub_actions:
        first, second = action.sub_actions
        for work in _work(first, waits):
            yield dataclasses.replace(work, waits=waits)
        yield from _work(second, waits)
        return
    kind = KINDS.get(action.computation_type.value)
    if kind is not None:
        yield Work(kind, action.stage_index, action.microbatch_index)
