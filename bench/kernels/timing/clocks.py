"""Clocks, and rounds in which every contender is timed once on the next set of inputs.

On a GPU a call is timed by events, behind a spin that lets the host get ahead: what is measured is the device's work
without the gaps of launching. What the host needs to launch it is reported beside it.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch

from bench.kernels.support.reasons import reason
from mhc_compile.cli import measure

Step = Callable[[int], object]  # of the number of a set of inputs
SPIN_CYCLES = 2.0e9  # per second, at most; a slower clock spins longer
MOST_SPIN = 0.05  # seconds
CACHES = 4  # how many times the L2 cache the sets of inputs are together


@dataclasses.dataclass(frozen=True)
class Sample:
    """Seconds of one call: on the device, and on the host until everything was launched."""

    device: float
    host: float


class Clock(Protocol):
    """Measures one call."""

    def sample(self, step: Callable[[], object], ahead: float) -> Sample:
        """Call once; the host may take `ahead` seconds to launch what the device then runs without gaps."""


class HostClock:
    """For a CPU."""

    def sample(self, step: Callable[[], object], ahead: float) -> Sample:
        """Return wall seconds."""
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        return Sample(seconds, seconds)


class EventClock:
    """For a GPU."""

    def sample(self, step: Callable[[], object], ahead: float) -> Sample:
        """Return seconds between two events."""
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(int(min(MOST_SPIN, ahead) * SPIN_CYCLES))
        before.record()
        start = time.perf_counter()
        step()
        host = time.perf_counter() - start
        after.record()
        torch.cuda.synchronize()
        return Sample(before.elapsed_time(after) / 1e3, host)


def clock(device: str) -> Clock:
    """Return the clock of a device."""
    return EventClock() if device.startswith("cuda") else HostClock()


@dataclasses.dataclass(frozen=True)
class Timed:
    """Of one contender.

    Attributes:
        seconds: the median; 0 where it failed.
        low: the lower quartile.
        high: the upper quartile.
        host: median seconds until all was launched.
        why: why there is no time, or "".
    """

    seconds: float = 0.0
    low: float = 0.0
    high: float = 0.0
    host: float = 0.0
    why: str = ""


def interleave(
    steps: Mapping[str, Step], clock: Clock, *, sets: int, rounds: int, warmup: int = 3, turn: bool = True
) -> dict[str, Timed]:
    """Time every step once per round on that round's set of inputs.

    A step that fails is out, with the reason. With `turn` the order turns by one each round; without, steps keep their
    order, as the kernels of an op must, so that each finds in the cache what its predecessor left.
    """
    failed: dict[str, Timed] = {}
    ahead: dict[str, float] = {}
    for name, step in steps.items():
        try:
            ahead[name] = _warm(step, clock, sets, warmup)
        except Exception as error:
            failed[name] = Timed(why=reason(error))
    names, samples = list(ahead), {name: list[Sample]() for name in ahead}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds if names else 0):
            first = number % len(names) if turn else 0
            for name in names[first:] + names[:first]:
                samples[name].append(clock.sample(partial(steps[name], number % sets), ahead[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: failed[name] if name in failed else _summary(samples[name]) for name in steps}


def _warm(step: Step, clock: Clock, sets: int, warmup: int) -> float:
    """Call a step on its sets; return how long the spin in front of it must be."""
    for number in range(max(sets, warmup) - 1):
        step(number % sets)
    return 1.5 * clock.sample(lambda: step(sets - 1), 0.0).host + 20e-6


def _summary(samples: list[Sample]) -> Timed:
    timing = measure.summarize({"": [sample.device for sample in samples]}, "")[""]
    ordered = sorted(timing.samples)
    host = sorted(sample.host for sample in samples)
    return Timed(
        timing.median, ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4], host[len(host) // 2]
    )  # fmt: skip


def l2_bytes(device: str) -> int:
    """Return the size of the L2 cache; 0 for a CPU, where nothing is rotated for it."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.startswith("cuda") else 0


def sets_for(bytes_: int, device: str) -> int:
    """Return how many sets of inputs of so many bytes outgrow the cache; at least 2."""
    return max(2, -(-CACHES * l2_bytes(device) // max(1, bytes_)))


def copy_ceiling(device: str, clock: Clock) -> float:
    """Return bytes per second, read and written, of copies that are large for the device; random, not zeros."""
    size = 2**32 if device.startswith("cuda") else 2**22
    source = torch.randint(-128, 127, (size,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    timed = interleave({"copy": lambda _: target.copy_(source)}, clock, sets=1, rounds=15)["copy"]
    return 2 * size / timed.seconds
