"""What bench.memory shows: measurements beside the planner's predictions, as a table and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import common
from mhc_compile.cli import bench

HEADS = (
    "", "L_r", "saved", "+/token site", "predicted", "off by", "peak", "above libraries", "step adds",
    "over plain", "predicted", "products bwd", "step", "to off", "quartiles", "to plain",
)  # fmt: skip
WIDTH = 190
Row = dict[str, Any]


def compared(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with medians, and with what is measured and predicted above the plain one.

    The planner counts what streams need, so its predictions are differences to plain: of what is saved, per token and
    site, and of the peak. What a step adds is its peak above what was there before; compilers' leftovers are not in it.
    Of off it predicts what sites without blocks keep; what is kept there is the compiler's choice.
    """
    made = []
    for row in rows:
        before, peak = (statistics.median(row[name]) for name in ("before", "peaks"))
        adds = statistics.median(peak - before for before, peak in zip(row["before"], row["peaks"], strict=True))
        made.append({**row, "peak": peak, "above_baseline": peak - row["baseline"], "step_adds": adds})
        made[-1]["resident_before"] = before
    plain = next((row for row in made if row["name"] == bench.PLAIN), None)
    return [row | _against(row, plain) for row in made]


def _against(row: Row, plain: Row | None) -> Row:
    plan = row["plan"]
    if plan is None or plain is None:
        return {}
    predicted, extra = plan["kept"] - plan["before_rewrite"], row["saved"] - plain["saved"]
    each = max(1, plan["token_sites"])
    return {
        "saved_predicted": plain["saved"] + predicted,
        "extra": extra / each,
        "extra_predicted": predicted / each,
        "off_by": extra / predicted - 1 if predicted else None,
        "peak_extra": row["step_adds"] - plain["step_adds"],
        "peak_extra_predicted": plan["peak"] - plan["before_rewrite"],
    }


def line(row: Row) -> tuple[str, ...]:
    """Return the row's cells, as HEADS names them."""
    plan, timing = row["plan"], row.get("time")
    against = ("",) * 3
    above = ("",) * 2
    if "extra" in row:
        off_by = "" if row["off_by"] is None else f"{row['off_by']:+.2%}"
        against = (f"{row['extra']:.1f} B", f"{row['extra_predicted']:.1f} B", off_by)
        above = (mega(row["peak_extra"]), mega(row["peak_extra_predicted"]))
    times = ("",) * 4
    if timing:
        off, to_plain = timing["off"], timing["plain"]
        quartiles = f"{off['ratio_low']:.3f}-{off['ratio_high']:.3f}"
        times = (f"{off['median'] * 1e3:.0f} ms", f"{off['ratio']:.3f}x", quartiles, f"{to_plain['ratio']:.3f}x")
    sizes = ", ".join(str(size) for size in plan["sizes"] if size) if plan else ""
    backward = str(sum(row["products"]["backward"].values()))
    memory = (mega(row["peak"]), mega(row["above_baseline"]), mega(row["step_adds"]))
    return (row["name"], sizes, mega(row["saved"]), *against, *memory, *above, backward, *times)


def mega(size: float) -> str:
    """Return bytes as "1.5 MB"."""
    return f"{size / 1e6:.1f} MB"


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the table."""
    common.show(title, HEADS, [line(row) for row in rows], WIDTH)


def plot(title: str, rows: Sequence[Row], path: Path) -> Path:
    """Draw saved bytes, the step's peak and the step's time against L_r, predictions as lines."""
    from matplotlib.figure import Figure

    plain = next((row for row in rows if row["name"] == bench.PLAIN), None)
    seconds = [row["time"]["off"]["median"] if row.get("time") else None for row in rows]
    figure = Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle(title, fontsize=9)
    saved, peak, *timed = figure.subplots(1, 3 if any(seconds) else 2)
    _panel(saved, rows, "saved for backward, MB", [row["saved"] / 1e6 for row in rows])
    _panel(peak, rows, "what a step adds at its peak, MB", [row["step_adds"] / 1e6 for row in rows])
    for axes in timed:
        _panel(axes, rows, "a step with AdamW, s", seconds)
    blocks = sorted((row for row in rows if "extra" in row and _size(row)), key=_size)
    if plain and blocks:
        sizes = [_size(row) for row in blocks]
        saved.plot(sizes, [row["saved_predicted"] / 1e6 for row in blocks], "-", label="predicted", zorder=1)
        predicted = [(plain["step_adds"] + row["peak_extra_predicted"]) / 1e6 for row in blocks]
        peak.plot(sizes, predicted, "-", label="predicted", zorder=1)
    for axes in (saved, peak, *timed):
        axes.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _size(row: Row) -> int:
    """Return the longest block; 0 where there are none."""
    return max(row["plan"]["sizes"], default=0) if row["plan"] else 0


def _panel(axes: Any, rows: Sequence[Row], label: str, values: Sequence[float | None]) -> None:
    """Draw a dot for each number of sites, and a level for what has none."""
    given = [(row, value) for row, value in zip(rows, values, strict=True) if value is not None]
    dots = [(_size(row), value) for row, value in given if _size(row) and row["name"] != "auto"]
    axes.plot(*zip(*dots, strict=True) if dots else ([], []), "o", label="L_r, measured")
    for row, value in given:
        if row["name"] == "auto":
            axes.plot([_size(row)], [value], "*", markersize=11, label="auto, measured")
        elif not _size(row):
            axes.axhline(value, linestyle="--" if row["plan"] else ":", color="gray", label=row["name"])
    axes.set_xlabel("L_r, sites per block")
    axes.set_title(label, fontsize=9)
    axes.set_ylim(bottom=0)
