"""What needs a fresh process for each contender: compile time with empty caches, and the peak of memory."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

from bench.compile_time import run as compile_time
from bench.memory import resident
from bench.memory import run as memory_run
from bench.train.contenders import is_ours
from bench.train.setup import Setup

Row = dict[str, Any]


def compile_times(names: Sequence[str], setup: Setup) -> dict[str, Row]:
    """Return seconds of compiling a training step from nothing, and the ratio to the first."""
    found: dict[str, Row] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            made = compile_time.process("whole", name, folder, setup)
        found[name] = {key: made[key] for key in ("compile_seconds", "upgrade_seconds", "graphs")}
    return _to_first(found, "compile_seconds")


def memory(names: Sequence[str], setup: Setup) -> dict[str, Row]:
    """Return what a training step adds, at its peak, to the memory before it, in bytes; and the ratio to the first."""
    found: dict[str, Row] = {}
    for name in names:
        if name.startswith("hc"):  # bench.memory knows mhc, plain and peers
            continue
        kernels = name.partition("/")[2] if is_ours(name) else ""
        fields = {field.name for field in dataclasses.fields(memory_run.Setup)} & set(dataclasses.asdict(setup))
        shape = {field: getattr(setup, field) for field in fields - {"rounds"}}
        its = memory_run.Setup(**shape, kernels=kernels or "auto", peaks=3, rounds=0)
        made = memory_run.apart("memory", its, ["auto" if is_ours(name) else name], resident.ENVIRONMENT)
        peaks = [peak - before for before, peak in zip(made["before"], made["peaks"], strict=True)]
        found[name] = {"peak_bytes": statistics.median(peaks), "peaks": peaks, "resident": made["peaks"]}
    return _to_first(found, "peak_bytes")


def _to_first(found: dict[str, Row], key: str) -> dict[str, Row]:
    first = next(iter(found.values()), {key: 1})[key]
    return {name: row | {"ratio": row[key] / first} for name, row in found.items()}
