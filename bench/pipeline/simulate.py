"""A step of a pipeline on a clock: who computes what when, and who waits for whom.

A process does its work in the order of torch's table, each piece as soon as its input is there. What a stage hands on
is sent when it is made, or behind the process's next piece where it waits for that. Overlapped, the sender goes on and
the message has its link to itself, behind those before it; else the sender waits until it has arrived.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench.pipeline.tables import Table, Work

Key = tuple[str, int, int]  # "forward" or "backward_input", stage, microbatch


@dataclass(frozen=True)
class Costs:
    """What a pipeline costs, in seconds.

    Attributes:
        seconds: of a piece of work.
        message: of one message between stages.
        overlapped: a process computes on while its messages are under way.
    """

    seconds: Callable[[Work], float]
    message: float = 0.0
    overlapped: bool = True


@dataclass(frozen=True)
class Span:
    """A piece of work on the clock, in seconds since the step began."""

    work: Work
    start: float
    end: float


@dataclass
class Step:
    """A step of all processes.

    Attributes:
        ranks: by process, what it did.
    """

    ranks: list[list[Span]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return max(spans[-1].end for spans in self.ranks)

    @property
    def idle(self) -> float:
        """Share of the step in which processes, on average, did not compute."""
        computed = sum(span.end - span.start for spans in self.ranks for span in spans)
        return 1 - computed / (self.seconds * len(self.ranks))


def simulate(table: Table, costs: Costs) -> Step:
    """Run a schedule on the clock.

    Raises:
        RuntimeError: the table waits for itself.
    """
    waiting = [deque(works) for works in table.ranks]
    step = Step([[] for _ in table.ranks])
    clock, arrived = [0.0] * len(table.ranks), dict[Key, float]()
    links: defaultdict[tuple[int, int], float] = defaultdict(float)
    unsent: defaultdict[int, list[Key]] = defaultdict(list)
    while any(waiting):
        moved = False
        for rank, works in enumerate(waiting):
            while works and (ready := _ready(works[0], arrived, table)) is not None:
                work, moved = works.popleft(), True
                start = max(clock[rank], ready)
                clock[rank] = start + costs.seconds(work)
                step.ranks[rank].append(Span(work, start, clock[rank]))
                unsent[rank] += _made(work)
                while unsent[rank] and not work.waits:
                    key = unsent[rank].pop(0)
                    arrived[key] = _sent(key, clock[rank], rank, table, costs, links)
                    if not costs.overlapped:
                        clock[rank] = arrived[key]
        if not moved:
            raise RuntimeError(f"{table.schedule} waits for itself: {[works[0] for works in waiting if works]}")
    return step


def _ready(work: Work, arrived: Mapping[Key, float], table: Table) -> float | None:
    """Return when the input of a piece of work is there; None where it is not made yet."""
    stage, microbatch = work.stage, work.microbatch
    if work.kinds[0] == "forward":
        return 0.0 if stage == 0 else arrived.get(("forward", stage - 1, microbatch))
    if work.kinds[0] == "backward_weight":
        return 0.0  # behind the stage's own backward_input, in the table's order
    before = ("forward", stage, microbatch) if stage == table.stages - 1 else ("backward_input", stage + 1, microbatch)
    return arrived.get(before)


def _made(work: Work) -> list[Key]:
    """Return what another stage may need of a piece of work."""
    return [(kind, work.stage, work.microbatch) for kind in work.kinds if kind != "backward_weight"]


def _sent(
    key: Key, end: float, rank: int, table: Table, costs: Costs, links: defaultdict[tuple[int, int], float]
) -> float:
    """Return when what a stage has made is where it is needed: at once, where the same process needs it or nobody."""
    kind, stage, _ = key
    to = stage + 1 if kind == "forward" else stage - 1
    other = table.rank_of(to) if 0 <= to < table.stages else rank
    if other == rank:
        return end
    links[rank, other] = max(links[rank, other], end) + costs.message
    return links[rank, other]
