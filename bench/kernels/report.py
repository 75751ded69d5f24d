"""What a run leaves: a JSON of all its numbers, tables, a plot, and a dated line in the notes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import common
from bench.kernels import tune
from bench.kernels.correctness import checks
from bench.kernels.timing import ops, race
from mhc_compile.cli import measure

NOTES = "NOTES.md"
PREFACE = """# Notes on runs of the kernels on GPUs

One line per run of `bench/gpu.sh`, newest last; the numbers are in `kernels-<device>.json` beside this file.
"""


WIDTH = 170


def show(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a wide table."""
    common.show(title, heads, rows, WIDTH)


def tables(results: Mapping[str, Any]) -> None:
    """Print what there is, a table per step."""
    if "correctness" in results:
        rows = [checks.line(row) for row in results["correctness"]["rows"]]
        show("against fp64: relative errors, worst of each group", checks.HEADS, rows)
        for row in results["correctness"]["rows"]:
            if row["why"]:
                print(f"{row['case']}: {row['why']}")
    if "time" in results:
        part = results["time"]
        ceiling = f"copy {part['ceiling'] / 1e12:.2f} TB/s"
        show(f"ops; {ceiling}", ops.HEADS, [ops.line(row) for row in part["rows"]["ops"]])
        show("a whole seam and torch", race.HEADS, race.lines(part["rows"]["sites"]))
    if "peers" in results:
        show("a whole site and other libraries", race.HEADS, race.lines(results["peers"]["rows"]))
    if "tune" in results:
        rows = [line for row in results["tune"]["rows"] for line in tune.lines(row)]
        show("launch configurations", tune.HEADS, rows)


def plot(results: Mapping[str, Any], path: Path) -> Path:
    """Draw each op's share of the copy ceiling, and sites against each other."""
    from matplotlib.figure import Figure

    ops = [row for row in results.get("time", {}).get("rows", {}).get("ops", []) if row.get("share")]
    sites = [row for row in results.get("peers", {}).get("rows", []) if row["both"]["seconds"]]
    heights = [max(8, len(ops)), max(8, len(sites))]
    figure = Figure(figsize=(12, 2 + 0.22 * sum(heights)), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=heights)
    _bars(
        upper, [(f"{row['name']} {row['direction']}", row["share"], row["share_most"]) for row in ops],
        ("design bytes, second reads from L2", "design bytes, no read hits L2"), "share of the copy's bandwidth",
    )  # fmt: skip
    _bars(
        lower,
        [
            (f"{row['contender']} n={row['n']} C={row['channels']}", row["both"]["seconds"] * 1e6,
             row["forward"]["seconds"] * 1e6)
            for row in sites
        ],
        ("forward + backward", "forward"), "microseconds of a whole site",
    )  # fmt: skip
    figure.savefig(path, dpi=110)
    return path


def _bars(axes: Any, rows: list[tuple[str, float, float]], names: tuple[str, str], label: str) -> None:
    at = range(len(rows))
    axes.barh([i - 0.2 for i in at], [row[1] for row in rows], 0.4, label=names[0])
    axes.barh([i + 0.2 for i in at], [row[2] for row in rows], 0.4, label=names[1])
    axes.set_yticks(list(at), [row[0] for row in rows], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    if rows:
        axes.legend(fontsize=7)


def summary(results: Mapping[str, Any]) -> str:
    """Say in a line what a run found."""
    parts = []
    if "correctness" in results:
        rows = results["correctness"]["rows"]
        right = sum(row["verdict"] == "right" for row in rows)
        parts.append(f"{right} of {len(rows)} cases right")
    ops = results.get("time", {}).get("rows", {}).get("ops", [])
    seams = [row for row in ops if row.get("op") == "seam" and row.get("seconds")][:2]
    parts += [f"{r['name']} {r['direction']} {r['seconds'] * 1e6:.0f} us, {r['share']:.0%} of copy" for r in seams]
    peers = results.get("peers", {}).get("rows", [])
    if first := [row for row in peers if (row["n"], row["channels"]) == (peers[0]["n"], peers[0]["channels"])]:
        ran = ", ".join(f"{row['contender']} {row['both']['seconds'] * 1e6:.0f} us" for row in first if not row["why"])
        parts.append(f"site n={first[0]['n']} C={first[0]['channels']}: {ran}")
    if "tune" in results:
        parts.append(f"{sum(len(row['tried']) for row in results['tune']['rows'])} configurations tried")
    return "; ".join(parts) or "nothing ran"


def note(folder: Path, device: str, text: str) -> Path:
    """Append a dated line to the notes."""
    path = folder / NOTES
    date = str(measure.environment(device)["date"])[:10]
    before = path.read_text("utf-8") if path.exists() else PREFACE + "\n"
    path.write_text(f"{before}* {date}, {measure.device_name(device)}: {text}\n", "utf-8")
    return path


def hand_out(*paths: Path) -> None:
    """Copy files to $OUT, which a machine that is lent for minutes sends back."""
    target = os.environ.get("OUT")
    if target and Path(target).is_dir():
        for path in paths:
            shutil.copy(path, target)
