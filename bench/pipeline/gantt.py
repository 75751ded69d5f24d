"""A step as a picture: a lane for each process, what it computed when, and white where it waited."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from bench.common import RESULTS
from bench.pipeline.processes import CONTENDERS

COLOURS = {"forward": "#4878cf", "backward": "#ee854a", "backward_input": "#ee854a", "backward_weight": "#6acc64"}
DARKER = 0.6  # opacity of a process's first stage
SIZE, DPI = (12.0, 5.0), 120  # inches, dots per inch


def save(noted: Sequence[dict[str, Any]], title: str) -> None:
    """Draw the last round of each contender on one time axis, into bench/results."""
    figure = Figure(figsize=SIZE, layout="constrained")
    rows = figure.subplots(len(CONTENDERS), 1, sharex=True)
    for axes, name in zip(rows, CONTENDERS, strict=True):
        for rank, each in enumerate(noted):
            spans = each[name][-1]["spans"]
            first = min(stage for _, stage, *_ in spans)
            for kind, stage, microbatch, start, end in spans:
                opacity = DARKER if stage == first else 1.0
                axes.barh(rank, 1e3 * (end - start), left=1e3 * start, color=COLOURS[kind], alpha=opacity)
                axes.text(5e2 * (start + end), rank, str(microbatch), ha="center", va="center", fontsize=6)
        axes.set_yticks(range(len(noted)), [f"rank {rank}" for rank in range(len(noted))])
        axes.invert_yaxis()
        axes.set_title(f"{name}, {title}", loc="left")
    rows[-1].set_xlabel("ms")
    path = RESULTS / "pipeline-cpu.png"
    figure.savefig(path, dpi=DPI)
    print(f"wrote {path}")
