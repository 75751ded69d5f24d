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
    """Return every run, one in a row."""
    heads = ("run", "loss at the end", "validation", "largest norm", "forward", "backward", "seconds per step")
    rows = []
    for trial, record in Store(path).records.items():
        last = record["looks"][-1]
        gains = [f"{max(look[way] for look in record['looks']):.4g}" if way in last else "" for way in heads[4:6]]
        told = [f"{value:.4g}" for value in (record["loss"][-1], verdicts.final(record), max(record["norm"]))]
        rows.append((trial.key, *told, *gains, f"{record['step_seconds']:.3f}"))
    return table(heads, rows) if rows else NOTHING


MAKERS: dict[str, Callable[[], str]] = {
    "evidence": measured,
    "every run": every,
    **{f"evidence: {name}": partial(question, name) for name in questions.QUESTIONS},
}
