"""Loss, norm of the gradient and composite gain in the course of training, every seed a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.stability import questions, verdicts
from bench.stability.trial import EVERY, Trial

Record = dict[str, Any]
Curve = tuple[Sequence[float], Sequence[float]]
SIZE, DPI = (13.0, 4.2), 120  # inches, dots per inch


def plot(records: Mapping[Trial, Record], path: Path) -> Path | None:
    """Draw the contenders of `connections`, each at its best learning rate; nothing where none was trained."""
    there = {trial: records[trial] for trial in questions.QUESTIONS["connections"]() if trial in records}
    best = {(one.name, one.lr): one for one in verdicts.summaries(there) if one.best}
    if not best:
        return None
    figure = Figure(figsize=SIZE, layout="constrained")
    loss, norm, gain = figure.subplots(1, 3)
    for number, (name, lr) in enumerate(best):
        chosen = [record for trial, record in there.items() if (trial.name, trial.lr) == (name, lr)]
        for axes, curves in ((loss, _every(chosen, "loss")), (norm, _every(chosen, "norm")), (gain, _gains(chosen))):
            _draw(axes, list(curves), f"{name}, lr {lr:g}", f"C{number}")
    loss.set(title="training loss, nats per byte", xlabel="step")
    norm.set(title="norm of the gradient, before it is clipped", xlabel="step", yscale="log")
    gain.set(title="largest composite gain, forward or backward", xlabel="step", yscale="log")
    loss.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def _every(records: Sequence[Record], what: str) -> Iterator[Curve]:
    for record in records:
        yield [EVERY * (i + 1) for i in range(len(record[what]))], record[what]


def _gains(records: Sequence[Record]) -> Iterator[Curve]:
    for record in records:
        looks = [look for look in record["looks"] if "forward" in look]
        if looks:
            yield [look["step"] for look in looks], [max(look["forward"], look["backward"]) for look in looks]


def _draw(axes: Axes, curves: Sequence[Curve], label: str, color: str) -> None:
    for number, (steps, values) in enumerate(curves):
        axes.plot(steps, values, color=color, linewidth=0.9, alpha=0.8, label=None if number else label)
