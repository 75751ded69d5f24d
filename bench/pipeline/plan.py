"""Pipelines past these machines: the paper's 27B shape on 8 to 64 stages, simulated from stated costs.

No process runs and nothing is timed. A stage holds so many layers as the model has for each, whatever the number of
stages, so that deeper pipelines are deeper models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.common import RESULTS, show
from bench.pipeline.simulate import Costs, simulate
from bench.pipeline.tables import FOLDED, table

SCHEDULES = ("1F1B", *FOLDED)
NETWORKS = {"NVLink 450 GB/s": 450e9, "400 Gb/s": 50e9}  # bytes per second and direction
STAGES = (8, 16, 32, 64)
CONTENDERS = ("plain", "mhc", "mhc, sent early", "mhc, senders wait")
STARTS_TO_COST = 0.01  # of the step
PATH = RESULTS / "pipeline_plan.json"


def main(path: Path = PATH) -> None:
    """Simulate, print the table, write the JSON."""
    shape = Shape()
    made = list(rows(shape))
    heads = ("schedule", "processes", "network", "bubble", *(f"exposed: {name}" for name in CONTENDERS))
    show(
        "the paper's 27B shape",
        heads,
        (
            (row["schedule"], str(row["ranks"]), row["network"], f"{row['plain']['bubble']:.1%}",
             *(f"{row[name]['exposed']:.1%}" for name in CONTENDERS))
            for row in made
        ),
        width=110,
    )  # fmt: skip
    bandwidths = {schedule: costs_below(shape, schedule, STAGES[0]) for schedule in SCHEDULES}
    for schedule, bandwidth in bandwidths.items():
        print(f"{schedule}: below {bandwidth / 1e9:.0f} GB/s the streams cost a hundredth of a step")
    text = json.dumps({"shape": asdict(shape), "rows": made, "costs_below": bandwidths}, indent=1)
    path.write_text(text + "\n", "utf-8")
    print(f"wrote {path}")


@dataclass(frozen=True)
class Shape:
    """A model, a machine, and what hyper-connections add.

    The paper's 27B model (arXiv 2512.24880, appendix A.1): 30 layers of 2560 features, 4.14 billion active parameters,
    sequences of 4096 tokens, n = 4, overhead 6.7 %. A device that does half of 788 TFLOP/s in bf16, as an H800 might.

    Attributes:
        overhead: what mHC adds to the time of a layer.
        latency: seconds of an empty message.
    """

    active: float = 4.14e9
    layers: int = 30
    channels: int = 2560
    tokens: int = 4096
    streams: int = 4
    width: int = 2
    flops: float = 394e12
    overhead: float = 0.067
    latency: float = 10e-6

    def costs(self, layers: float, streams: int, bandwidth: float, *, overlapped: bool = True) -> Costs:
        """Return the costs of a stage of so many layers; one stream is the plain model."""
        forward = 2 * self.active / self.layers * layers * self.tokens / self.flops
        forward *= 1 + self.overhead * (streams > 1)
        sent = self.tokens * self.channels * streams * self.width / bandwidth + self.latency
        return Costs(lambda work: forward * len(work.kinds), sent, overlapped)


def rows(shape: Shape, layers: float = 4.0, microbatches: int = 4) -> Iterator[dict[str, Any]]:
    """Iterate over schedules, depths and networks.

    Args:
        shape: the model and the machine.
        layers: of each process, over all of its stages.
        microbatches: of each process.
    """
    for schedule in SCHEDULES:
        each = _of_stage(schedule, layers)
        for ranks in STAGES:
            late, early = (table(schedule, ranks, microbatches * ranks, early=early) for early in (False, True))
            silent = {n: simulate(early, Costs(shape.costs(each, n, 1.0).seconds)) for n in (1, shape.streams)}
            for network, bandwidth in NETWORKS.items():
                row: dict[str, Any] = {"schedule": schedule, "ranks": ranks, "network": network}
                for name, steps in zip(CONTENDERS, (late, late, early, early), strict=True):
                    streams, overlapped = 1 if name == "plain" else shape.streams, name != "mhc, senders wait"
                    costs = shape.costs(each, streams, bandwidth, overlapped=overlapped)
                    seconds = simulate(steps, costs).seconds
                    row[name] = {
                        "seconds": seconds,
                        "bubble": silent[streams].idle,
                        "exposed": (seconds - silent[streams].seconds) / seconds,
                    }
                yield row


def _of_stage(schedule: str, layers: float) -> float:
    """Return how many of a process's layers each of its stages has."""
    return layers / 2 if schedule in FOLDED else layers


def costs_below(shape: Shape, schedule: str, ranks: int, layers: float = 4.0, microbatches: int = 4) -> float:
    """Return the bandwidth, in bytes per second, below which streams that are sent early cost a hundredth of a step."""
    each = _of_stage(schedule, layers)
    steps = table(schedule, ranks, microbatches * ranks, early=True)
    silent = simulate(steps, Costs(shape.costs(each, shape.streams, 1.0).seconds)).seconds
    low, high = 1e8, 1e13
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        seconds = simulate(steps, shape.costs(each, shape.streams, middle)).seconds
        low, high = (middle, high) if seconds > silent * (1 + STARTS_TO_COST) else (low, middle)
    return high
