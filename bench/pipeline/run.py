"""Steps of torch's schedules on gloo processes, plain and mhc in turns; what the simulator says of the same costs."""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from bench.common import save, show
from bench.pipeline import gantt, plan
from bench.pipeline.processes import CONTENDERS, EARLY, PLAIN, measured
from bench.pipeline.simulate import Costs, simulate
from bench.pipeline.tables import Table, Work, table

SCHEDULES = ("GPipe", "1F1B", "Interleaved1F1B", "ZBVZeroBubble", "DualPipeV")
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure here, or plan past this machine; print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.pipeline", description=__doc__)
    parser.add_argument("--plan", action="store_true", help="simulate the paper's 27B shape on 8 to 64 stages")
    parser.add_argument("--schedules", nargs="*", default=SCHEDULES)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4], help="numbers of processes")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2, help="of a microbatch")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    if args.plan:
        plan.main()
        return
    rows = []
    for ranks in args.ranks:
        for schedule in args.schedules:
            noted = measured(schedule, ranks, args)
            tables = {name: table(schedule, ranks, args.microbatches, early=name == EARLY) for name in CONTENDERS}
            rows += [_row(name, steps, noted) for name, steps in tables.items()]
            if ranks == max(args.ranks) and schedule == args.schedules[-1]:
                gantt.save(noted, f"{schedule} on {ranks} processes")
    _show(rows)
    save("pipeline", "cpu", vars(args), rows)


def _row(name: str, steps: Table, noted: list[Row]) -> Row:
    """Put together what all processes noted of a contender."""
    rounds = range(len(noted[0][name]))
    seconds = [max(each[name][r]["seconds"] for each in noted) for r in rounds]
    plain = [max(each[PLAIN][r]["seconds"] for each in noted) for r in rounds]
    costs = _costs(name, steps, noted)
    silent, predicted = simulate(steps, Costs(costs.seconds)), simulate(steps, costs)
    median = statistics.median(seconds)
    ratios = [a / b for a, b in zip(seconds, plain, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "schedule": steps.schedule,
        "ranks": len(steps.ranks),
        "contender": name,
        "seconds": median,
        "samples": seconds,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "bubble": silent.idle,
        "message_seconds": costs.message,
        "communication_seconds": costs.message * _messages(steps) / len(steps.ranks),
        "exposed_seconds": max(0.0, median - silent.seconds),
        "simulated_seconds": predicted.seconds,
    }


def _costs(name: str, steps: Table, noted: list[Row]) -> Costs:
    """Return what each stage's work took in the median, and a message while nobody computes.

    What a process did in a step beside computing and waiting, such as torch's bookkeeping, is shared out to its work.
    """
    samples: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for each in noted:
        for step in each[name]:
            for kind, stage, _, start, end in step["spans"]:
                samples[kind, stage].append(end - start)
    medians = {key: statistics.median(values) for key, values in samples.items()}
    beside = [statistics.median(map(_beside, each[name])) / len(steps.ranks[rank]) for rank, each in enumerate(noted)]

    def seconds(work: Work) -> float:
        kind = "backward" if len(work.kinds) > 1 else work.kinds[0]
        return medians[kind, work.stage] + beside[steps.rank_of(work.stage)]

    return Costs(seconds, noted[0]["message"][name])


def _beside(step: Row) -> float:
    computed = sum(end - start for *_, start, end in step["spans"])
    return float(step["seconds"] - computed - step["waited"])


def _messages(steps: Table) -> int:
    """Count what is sent in a step between processes: every microbatch, forward and back."""
    crossed = sum(steps.rank_of(stage) != steps.rank_of(stage + 1) for stage in range(steps.stages - 1))
    return 2 * crossed * (1 + max(work.microbatch for works in steps.ranks for work in works))


def _show(rows: Sequence[Row]) -> None:
    heads = ("schedule", "ranks", "", "step", "of plain", "bubble", "communication", "waited for", "simulated")
    show(
        "pipelines",
        heads,
        (
            (
                row["schedule"],
                str(row["ranks"]),
                row["contender"],
                f"{row['seconds'] * 1e3:.0f} ms",
                f"{row['ratio']:.2f}",
                f"{row['bubble']:.0%}",
                f"{row['communication_seconds'] * 1e3:.1f} ms",
                f"{row['exposed_seconds'] * 1e3:.1f} ms",
                f"{row['simulated_seconds'] / row['seconds']:.2f}",
            )
            for row in rows
        ),
        width=120,
    )
