"""What the demo reports: the table, the plot and the JSON of its three runs."""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mhc_compile.cli import measure

TAIL = 20  # training losses are averaged over the last so many steps


@dataclass
class Runner:
    """One of the three: its model, its optimizer and what was measured on it."""

    name: str
    model: torch.nn.Module
    compiled: Any
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    extra_parameters: int
    losses: list[float] = field(default_factory=list)  # nats per byte, one per step
    seconds: list[float] = field(default_factory=list)  # per step
    validation: list[tuple[int, float]] = field(default_factory=list)  # (step, nats per byte)
    saved: int = 0  # bytes saved for backward

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """Mean next-byte loss, in nats per byte."""
        loss: torch.Tensor = self.compiled(input_ids=batch, labels=batch).loss
        return loss

    def step(self, batch: torch.Tensor) -> None:
        """One optimizer step, timed."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)
        self.schedule.step()

    @property
    def compile_seconds(self) -> float:
        """Seconds of the first step above a usual one."""
        return self.seconds[0] - statistics.median(self.seconds[1:])


def tell(runners: list[Runner], args: argparse.Namespace, total: float, console: Any) -> dict[str, Any]:
    """Print the table, save the plot and the JSON, and return what went into the JSON."""
    timings = measure.summarize({r.name: r.seconds[1:] for r in runners}, runners[0].name)
    results = [row_of(r, timings[r.name], runners[0].saved) for r in runners]
    payload = {
        "environment": measure.environment(),
        "arguments": {k: v for k, v in vars(args).items() if k != "command"},
        "steps": len(runners[0].losses),
        "seconds": total,
        "parameters": sum(p.numel() for p in runners[0].model.parameters()),
        "results": results,
    }
    path = measure.write_json(args.out / "mhc_demo.json", payload)
    console.print(table(results, len(runners[0].losses), args))
    console.print(f"{total:.0f} s in all; wrote {path} and {plot(runners, args.out)}")
    return payload


def row_of(runner: Runner, timing: measure.Timing, plain_saved: int) -> dict[str, Any]:
    """One row: losses in nats per byte, times in seconds, sizes in bytes."""
    return {
        "name": runner.name,
        "validation_loss": runner.validation[-1][1],
        "training_loss": statistics.fmean(runner.losses[-TAIL:]),
        "step_seconds": timing.median,
        "step_ratio": timing.ratio,
        "step_ratio_quartiles": [timing.ratio_low, timing.ratio_high],
        "extra_parameters": runner.extra_parameters,
        "saved_bytes": runner.saved,
        "extra_saved_bytes": runner.saved - plain_saved,
        "compile_seconds": runner.compile_seconds,
        "losses": runner.losses,
        "seconds": runner.seconds,
        "validation": runner.validation,
    }


def table(results: list[dict[str, Any]], steps: int, args: argparse.Namespace) -> Any:
    """The rows as a rich table."""
    from rich.table import Table

    shown = Table(
        title=f"{steps} steps of {args.batch} x {args.length} bytes, {args.streams} streams",
        caption=f"val, train: loss in nats per byte; train over the last {min(TAIL, steps)} steps;"
        " a rounding's difference alone ends some thousandths apart\n"
        "step: median; ratio: to residual, taken in turn; caches cold\n"
        "params, memory (saved for backward): what comes on top of residual",
    )
    shown.add_column("")
    for head in ("val", "train", "step", "ratio", "params", "memory", "compile"):
        shown.add_column(head, justify="right", no_wrap=True)
    for row in results:
        shown.add_row(
            row["name"],
            f"{row['validation_loss']:.4f}",
            f"{row['training_loss']:.4f}",
            f"{row['step_seconds'] * 1e3:.0f} ms",
            f"{row['step_ratio']:.2f}x",
            f"+{row['extra_parameters']:,}",
            f"{row['extra_saved_bytes'] / 1e6:+.0f} MB",
            f"{row['compile_seconds']:.0f} s",
        )
    return shown


def plot(runners: list[Runner], folder: Path) -> Path:
    """Save the loss curves: training thin, validation with markers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, runner in enumerate(runners):
        steps = range(1, len(runner.losses) + 1)
        axes.plot(steps, runner.losses, color=f"C{index}", linewidth=0.7, alpha=0.5)
        axes.plot(*zip(*runner.validation, strict=True), "o-", color=f"C{index}", label=runner.name)
    axes.set(xlabel="step", ylabel="loss, nats per byte", title="training thin, validation marked")
    axes.legend()
    path = folder / "mhc_demo.png"
    figure.savefig(path, dpi=150)
    return path
