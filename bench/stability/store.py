"""The results: each under its trial, written as soon as it is there, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.common import RESULTS
from bench.stability.trial import Trial
from mhc_compile.cli import measure

PATH = RESULTS / "stability.json"


class Store:
    """One file of results.

    Attributes:
        path: where it is.
        records: what `training.train` returned, and when, by trial.
        last: what the file holds.
    """

    def __init__(self, path: Path = PATH) -> None:
        """Read what is there."""
        self.path = path
        self.last: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"rows": []}
        self.records = {Trial.from_dict(row["trial"]): row["record"] for row in self.last["rows"]}

    def missing(self, trials: Iterable[Trial]) -> list[Trial]:
        """Return the trials without a result, each once, in their order."""
        return [trial for trial in dict.fromkeys(trials) if trial not in self.records]

    def add(self, trial: Trial, record: dict[str, Any]) -> None:
        """Keep a result."""
        made = measure.environment()
        self.records[trial] = record | {key: made[key] for key in ("date", "git", "cpu", "load")}
        rows = [
            {"trial": t.to_dict(), "record": r} for t, r in sorted(self.records.items(), key=lambda one: one[0].key)
        ]
        measure.write_json(self.path, {"environment": made, "rows": rows})
