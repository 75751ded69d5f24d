"""The tables of docs/benchmarks.md about pipelines, from what `bench.pipeline` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from bench.page import results, table, where
from bench.pipeline.plan import CONTENDERS, PATH

Row = dict[str, Any]


def measured() -> str:
    """Return a table of what ran on processes here."""
    found = results("pipeline-*.json")
    return "\n\n".join(_measured(result) for _, result in found) or "Nothing has been measured yet."


def _measured(result: Row) -> str:
    of = result["arguments"]
    heads = ("", "step", "of plain", "bubble", "communication", "waited for", "simulated / measured")
    rows = [
        (
            f"{row['schedule']}, {row['ranks']} processes, {row['contender']}",
            f"{row['seconds'] * 1e3:.0f} ms",
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
            f"{row['bubble']:.0%}",
            f"{row['communication_seconds'] * 1e3:.1f} ms",
            f"{row['exposed_seconds'] * 1e3:.1f} ms",
            f"{row['simulated_seconds'] / row['seconds']:.2f}",
        )
        for row in result["rows"]
    ]
    size = f"{of['layers']} layers of {of['width']} features, {of['microbatches']} microbatches of {of['batch']} x"
    return f"{size} {of['length']} tokens, n = {of['streams']}. {where(result)}\n\n{table(heads, rows)}"


def planned() -> str:
    """Return a table of the fewest and the most processes that were simulated, and from which bandwidth on n costs."""
    found = json.loads(PATH.read_text("utf-8"))
    ends = {min(row["ranks"] for row in found["rows"]), max(row["ranks"] for row in found["rows"])}
    heads = ("", "bubble", *CONTENDERS)
    rows = [
        (
            f"{row['schedule']}, {row['ranks']} processes, {row['network']}",
            f"{row['plain']['bubble']:.1%}",
            *(f"{row[name]['exposed']:.1%}" for name in CONTENDERS),
        )
        for row in found["rows"]
        if row["ranks"] in ends
    ]
    at = ", ".join(f"{value / 1e9:.0f} GB/s under {name}" for name, value in found["costs_below"].items())
    return f"{table(heads, rows)}\n\nSent early, streams cost a hundredth of a step below {at}."


MAKERS: dict[str, Callable[[], str]] = {"pipelines": measured, "planned pipelines": planned}
