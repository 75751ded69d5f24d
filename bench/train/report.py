"""What a run shows: a table, and one plot of all results of a device."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import common
from bench.train.measures import TIMED

Row = dict[str, Any]
HEADS = ("", *TIMED, "compile", "peak", "saved", "parameters")
WIDTH = 200


def cells(row: Row, plain: Row) -> tuple[str, ...]:
    """Return the cells of a row that was timed, as HEADS names them."""
    times = [_time(row["times"].get(name)) for name in TIMED]
    compiling, peak = row.get("compile"), row.get("memory")
    return (
        row["name"] + (" (eager)" if row["eager"] else ""),
        *times,
        f"{compiling['compile_seconds']:.1f} s  {compiling['ratio']:.2f}x" if compiling else "",
        f"{peak['peak_bytes'] / 1e6:.0f} MB  {peak['ratio']:.2f}x" if peak else "",
        f"{row['saved_bytes'] / 1e6:.0f} MB  {row['saved_bytes'] / max(1, plain['saved_bytes']):.2f}x",
        f"{row['parameters'] - plain['parameters']:+,}",
    )


def _time(timing: Row | None) -> str:
    if timing is None:
        return ""
    quartiles = f"{timing['ratio_low']:.2f}-{timing['ratio_high']:.2f}"
    return f"{timing['median'] * 1e3:.1f} ms  {timing['ratio']:.3f}x  {quartiles}"


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the table, and a line for each contender that has no speed."""
    plain = rows[0]
    if not plain["why"]:
        common.show(title, HEADS, [cells(row, plain) for row in rows if not row["why"]], WIDTH)
    for row in rows:
        if row["why"] or row["eager"]:
            print(f"{row['name']}: {row['why'] or row['eager']}")


def results(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """Iterate over the results of a device that lie in a folder, float32 first, by size."""
    paths = folder.glob(common.place("train-*-*", device, folder).name)
    found = [json.loads(path.read_text("utf-8")) for path in paths]
    yield from sorted(found, key=lambda one: (one["arguments"]["dtype"] != "float32", one["arguments"]["hidden"]))


def plot(folder: Path, device: str) -> Path:
    """Draw ratios to plain with their quartiles, a panel for each measure, a group of bars for each size."""
    from matplotlib.figure import Figure

    found = list(results(folder, device))
    names = list(dict.fromkeys(row["name"] for one in found for row in one["rows"] if row.get("times")))[1:]
    figure = Figure(figsize=(13, 7), layout="constrained")
    for axes, measured in zip(figure.subplots(2, 2).flat, TIMED, strict=True):
        for place, name in enumerate(names):
            bars = [(at, row["times"][measured]) for at, one in enumerate(found) for row in one["rows"]
                    if row["name"] == name and measured in row.get("times", {})]  # fmt: skip
            if bars:
                _bars(axes, bars, name, (place - (len(names) - 1) / 2) * 0.8 / len(names), 0.8 / len(names))
        axes.axhline(1.0, color="black", linewidth=0.8)
        groups = [f"{one['arguments']['hidden']}\n{one['arguments']['dtype']}\n{_maker(one)}" for one in found]
        axes.set_xticks(range(len(groups)), groups, fontsize=8)
        axes.set_title(f"{measured}, ratio to plain (lower is better)", fontsize=9)
        axes.set_ylim(bottom=0.8)
        if names:
            axes.legend(fontsize=7)
    path = common.place("train", device, folder).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _maker(one: dict[str, Any]) -> str:
    return str(one["environment"].get("cpu", "")).partition("(")[0].partition(" ")[0]


def _bars(axes: Any, bars: Sequence[tuple[int, Row]], name: str, shift: float, width: float) -> None:
    heights = [timing["ratio"] for _, timing in bars]
    low = [max(0.0, timing["ratio"] - timing["ratio_low"]) for _, timing in bars]
    high = [max(0.0, timing["ratio_high"] - timing["ratio"]) for _, timing in bars]
    axes.bar([at + shift for at, _ in bars], heights, width, yerr=[low, high], label=name, capsize=2)
