"""What every step is given: the device, the sizes, the clock and the time there is."""

from __future__ import annotations

import dataclasses

from bench.kernels.support.cases import Sizes
from bench.kernels.support.deadline import Deadline
from bench.kernels.timing.clocks import Clock


@dataclasses.dataclass(frozen=True)
class Context:
    """Of one step.

    Attributes:
        device: "cuda", or "cpu" in a dry run.
        sizes: what to cover.
        clock: measures a step.
        ceiling: bytes per second, read and written, of a large copy on the device.
        rounds: timed calls of each contender.
        jobs: processes that compile or check side by side; 1 works in this one.
        deadline: when nothing more is started.
        dry: whether kernels are interpreted on a CPU.
        space: "module:function" that yields tiles for a spec, or "" for the model's candidates.
    """

    device: str
    sizes: Sizes
    clock: Clock
    ceiling: float
    rounds: int
    jobs: int
    deadline: Deadline
    dry: bool = False
    space: str = ""

    def part(self, parts: int) -> Context:
        """Return the same with the first of so many equal parts of the time that is left."""
        return dataclasses.replace(self, deadline=self.deadline.share(parts))
