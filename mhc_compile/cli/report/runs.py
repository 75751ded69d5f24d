"""Runs as their logs tell them, thinned to what a page can show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mhc_compile.api.monitor.run_log import FILE, read

MOST_POINTS = 600  # of a line; more than a plot has pixels for
MOST_LOOKS = 16  # whose matrices are shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run.

    Attributes:
        name: what tells it from the others.
        model: what its log says of the model; {} where it says nothing.
        steps: its records by step, each step once.
        warnings: the texts of its warnings.
        notes: what is odd about its log.
    """

    name: str
    model: dict[str, Any]
    steps: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def looks(self) -> tuple[dict[str, Any], ...]:
        """The records that hold gains."""
        return tuple(record for record in self.steps if record.get("sites", {}).get("name"))

    @property
    def last(self) -> dict[str, Any]:
        """The gains of the last look, by column; {} where there is none."""
        sites: dict[str, Any] = self.looks[-1]["sites"] if self.looks else {}
        return sites


def load(folders: Sequence[Path]) -> list[Run]:
    """Read the runs of some folders, each under a name of its own.

    Raises:
        RunLogError: a folder holds no log that can be read.
    """
    names = _names([folder.resolve() for folder in folders])
    return [_run(name, *read(folder / FILE)) for name, folder in zip(names, folders, strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the ends of the paths: as long as it takes to tell them apart, with a number where they are the same."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{folder.name} ({number})" for number, folder in enumerate(folders, start=1)]


def _run(name: str, records: list[dict[str, Any]], broken: int) -> Run:
    by_step: dict[int, dict[str, Any]] = {}
    for record in records:
        if record["kind"] == "step" and isinstance(record.get("step"), int):
            by_step[record["step"]] = {**by_step.get(record["step"], {}), **record}
    steps = tuple(by_step[step] for step in sorted(by_step))
    notes = []
    if broken:
        notes.append(f"{broken} line{'s' * (broken > 1)} of the log cannot be read, as after a crash; left out")
    if not steps:
        notes.append("no step was written: did monitor.step(...) run?")
    elif not any(record.get("sites") for record in steps):
        notes.append("no gains were measured: monitor.step was given no batch")
    if odd := [record["step"] for record in steps if not _is_finite(record.get("loss", 0.0))]:
        notes.append(f"the loss is not a finite number at {_listed(odd)}: a gap in the plot")
    if failed := [record["step"] for record in steps if "error" in record]:
        notes.append(f"the monitor could not look at {_listed(failed)}: {by_step[failed[0]]['error']}")
    model: dict[str, Any] = next((record for record in reversed(records) if record["kind"] == "model"), {})
    warnings = tuple(str(record.get("text", "")) for record in records if record["kind"] == "warning")
    return Run(name=name, model=model, steps=steps, warnings=warnings, notes=tuple(notes))


def _listed(steps: Sequence[int]) -> str:
    more = f" and {len(steps) - 5} more" if len(steps) > 5 else ""
    return f"step{'s' * (len(steps) > 1)} {', '.join(map(str, steps[:5]))}{more}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def finite(value: Any) -> float | None:
    """Return the number, None where there is none: a gap in a plot."""
    return float(value) if _is_finite(value) else None


def thinned(records: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return at most so many records, evenly from the first to the last."""
    if len(records) <= most:
        return list(records)
    return [records[round(i * (len(records) - 1) / (most - 1))] for i in range(most)]


def worst(values: Iterable[Any]) -> float | None:
    """Return the largest number, None where one is no number."""
    found = [finite(value) for value in values]
    known = [value for value in found if value is not None]
    return max(known) if known and len(known) == len(found) else None
