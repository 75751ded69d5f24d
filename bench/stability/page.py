"""The parts of docs/evidence.md, from the results; `python -m tests.project.documents` puts them in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.page import table, where
from bench.stability import questions, verdicts
from bench.stability.store import PATH, Store

NOTHING = "Nothing has been measured yet."


def measured(path: Path = PATH) -> str:
    """Say on what the results were measured, and how many there are."""
    store = Store(path)
    if not store.records:
        return NOTHING
    asked = {name: list(dict.fromkeys(make())) for name, make in questions.QUESTIONS.items()}
    counts = ", ".join(f"{name} {sum(t in store.records for t in ts)} of {len(ts)}" for name, ts in asked.items())
    machines = Counter(record["cpu"] for record in store.records.values())
    ran = ", ".join(f"{count} on {cpu}" for cpu, count in machines.most_common())
    return f"The last of them: {where(store.last)}\n\nRuns that are there: {counts}; {ran}."


def question(name: str, path: Path = PATH) -> str:
    """Return the table of a question."""
    records = Store(path).records
    there = {trial: records[trial] for trial in questions.compared(name) if trial in records}
    if not there:
        return NOTHING
    against = questions.AGAINST.get(name, "residual")
    return table(verdicts.HEADS, verdicts.rows(verdicts.summaries(there), against))


def every(path: Path = PATH) -> str:
    """Return every run: those that differ in their seed only are one row, with a number for each seed."""
    heads = ("runs", "seeds", "last loss", "validation", "largest norm", "forward", "backward", "seconds per step")
    alike: dict[str, list[tuple[str, ...]]] = {}
    for trial, record in Store(path).records.items():
        last = record["looks"][-1]
        gains = [f"{max(look[way] for look in record['looks']):.4g}" if way in last else "" for way in heads[5:7]]
        told = [f"{value:.4g}" for value in (record["loss"][-1], verdicts.final(record), max(record["norm"]))]
        row = str(trial.seed), *told, *gains, f"{record['step_seconds']:.3f}"
        alike.setdefault(trial.but_seed, []).append(row)
    columns = {name: zip(*some, strict=True) for name, some in alike.items()}
    rows = [(name, *(", ".join(filter(None, each)) for each in found)) for name, found in columns.items()]
    return table(heads, rows) if rows else NOTHING


MAKERS: dict[str, Callable[[], str]] = {
    "evidence": measured,
    "every run": every,
    **{f"evidence: {name}": partial(question, name) for name in questions.QUESTIONS},
}
