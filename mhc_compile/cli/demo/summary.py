"""What the demo reports: the table, the plot and the JSON of its three runs."""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mhc_compile.api.gains import Observer
from mhc_compile.api.gains.result import DEAD, Gains
from mhc_compile.api.gains.tables import number
from mhc_compile.cli import measure
from mhc_compile.cli.training import CLIP, Run

TAIL = 20  # training losses are averaged over the last so many steps


@dataclass
class Runner(Run):
    """One of the three: its model, its optimizer and what was measured on it."""

    extra_parameters: int
    observer: Observer | None = None  # residual has no streams
    validation: list[tuple[int, float]] = field(default_factory=list)  # (step, nats per byte)
    gains: list[tuple[int, Gains]] = field(default_factory=list)
    saved: int = 0  # bytes saved for backward

    @property
    def gain(self) -> float | None:
        """The largest composite gain at any look; None without streams."""
        return max(found.composite.mean for _, found in self.gains) if self.gains else None

    @property
    def alive(self) -> tuple[int, int] | None:
        """Sites at which the streams are apart in the end, of how many."""
        if not self.gains:
            return None
        sites = self.gains[-1][1].sites
        return sum(site.spread > DEAD for site in sites), len(sites)

    @property
    def compile_seconds(self) -> float:
        """Seconds of the first step above a usual one, with the caches that were there."""
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
        "gain": runner.gain,
        "gains": [(step, found.composite.mean) for step, found in runner.gains],
        "sites_alive": runner.alive,
        "largest_gradient_norm": max(runner.norms),
        "norms": runner.norms,
        "losses": runner.losses,
        "seconds": runner.seconds,
        "validation": runner.validation,
    }


def table(results: list[dict[str, Any]], steps: int, args: argparse.Namespace) -> Any:
    """The rows as a rich table."""
    from rich.table import Table

    shown = Table(
        title=f"{steps} steps of {args.batch} x {args.length} bytes, {args.layers} layers, {args.streams} streams",
        caption=f"val, train: loss in nats per byte; train over the last {min(TAIL, steps)} steps; one seed\n"
        f"norm: largest gradient norm, before it is clipped to {CLIP:g}; step: median; ratio: to residual, in turn\n"
        "gain: largest composite gain, forward or backward, at any look (1: nothing is amplified)\n"
        f"phi learns at {args.phi_lr_scale:g} times the rate of the rest, {args.lr:g}\n"
        "alive: sites whose streams are apart at the end",
    )
    shown.add_column("")
    for head in ("val", "train", "norm", "step", "ratio", "gain", "alive"):
        shown.add_column(head, justify="right", no_wrap=True)
    for row in results:
        alive = row["sites_alive"]
        shown.add_row(
            row["name"],
            f"{row['validation_loss']:.4f}",
            f"{row['training_loss']:.4f}",
            f"{row['largest_gradient_norm']:.1f}",
            f"{row['step_seconds'] * 1e3:.0f} ms",
            f"{row['step_ratio']:.2f}x",
            "-" if row["gain"] is None else number(row["gain"]),
            "-" if alive is None else f"{alive[0]} of {alive[1]}",
        )
    return shown


def plot(runners: list[Runner], folder: Path) -> Path:
    """Save the loss curves, training thin and validation with markers, and the gains beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    losses, gains = figure.subplots(1, 2)
    for index, runner in enumerate(runners):
        steps = range(1, len(runner.losses) + 1)
        losses.plot(steps, runner.losses, color=f"C{index}", linewidth=0.7, alpha=0.5)
        losses.plot(*zip(*runner.validation, strict=True), "o-", color=f"C{index}", label=runner.name)
        looks = [(step, found.composite.mean) for step, found in runner.gains]
        if looks:
            gains.plot(*zip(*looks, strict=True), "o-", color=f"C{index}", label=runner.name)
    losses.set(xlabel="step", ylabel="loss, nats per byte", title="training thin, validation marked")
    gains.set(xlabel="step", title="largest composite gain", yscale="log")
    losses.legend()
    gains.legend()
    path = folder / "mhc_demo.png"
    figure.savefig(path, dpi=150)
    return path
