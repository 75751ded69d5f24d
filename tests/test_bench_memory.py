"""bench.memory: what it reads, what it sets beside each other, and one small run in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import memory, memory_report, resident
from bench.memory import Setup

SMALL = Setup(hidden=32, layers=1, length=16, streams=2)


def row(name: str, saved: int, plan: Any = None, **more: Any) -> dict[str, Any]:
    given = {"name": name, "baseline": 10, "before": [100, 102, 104], "peaks": [200, 230, 240], "saved": saved}
    return given | {"products": {"forward": {"mm": 3}, "backward": {"mm": 6}}, "plan": plan} | more


PLAN = {
    "kept": 900, "peak": 1000, "without": 2000, "plain": 300, "moved": 50, "sites": 2, "token_sites": 10, "sizes": [2]
}  # fmt: skip


def test_status() -> None:
    assert resident.status("VmHWM", "Name:\tx\nVmHWM:\t   12 kB\nVmRSS:\t 7 kB\n") == 12 * 1024
    with pytest.raises(ValueError, match="no VmPeak"):
        resident.status("VmPeak", "VmHWM: 12 kB\n")


def test_peak_of_what_a_step_holds() -> None:
    """Forty megabytes for a moment, which the set itself no longer shows."""
    gauge = resident.gauge("cpu")
    size = 40 << 20

    def step() -> None:
        bytearray(b"x") * size

    ((before, peak),) = resident.peaks(gauge, step, lambda: None, 1)
    assert peak - before > 0.9 * size
    assert gauge.now() - before < 0.5 * size


def test_against_plain_and_the_plan() -> None:
    plain, ours = memory_report.compared([row("plain", 5000), row("2", 5630, PLAN)])
    assert "extra" not in plain
    assert (ours["peak"], ours["step_adds"], ours["above_baseline"]) == (230, 128, 220)
    assert (ours["saved_predicted"], ours["extra"], ours["extra_predicted"]) == (5600, 63.0, 60.0)
    assert ours["off_by"] == pytest.approx(0.05)
    assert (ours["peak_extra"], ours["peak_extra_predicted"]) == (0, 700)


def test_lines_have_a_cell_for_every_head() -> None:
    timing = {"median": 1.5, "ratio": 1.01, "ratio_low": 1.0, "ratio_high": 1.02}
    rows = [row("plain", 5000), row("2", 5630, PLAN, time={"off": timing, "plain": timing})]
    first, second = map(memory_report.line, memory_report.compared(rows))
    assert len(first) == len(second) == len(memory_report.HEADS)
    assert second[:6] == ("2", "2", "0.0 MB", "63.0 B", "60.0 B", "+5.00%")
    assert second[-5:] == ("6", "1500 ms", "1.010x", "1.000-1.020", "1.010x")


def test_contenders_and_their_options() -> None:
    assert memory.contenders(["off", "1", "2", "3", "auto"], SMALL) == ["plain", "off", "1", "2", "auto"]
    assert SMALL.options("plain") == {}
    found = [SMALL.options(name)["recompute"] for name in ("off", "2", "0.5", "memory:2GiB")]
    assert found == ["off", 2, 0.5, "memory:2GiB"]


@pytest.mark.slow
def test_small_run(tmp_path: Path) -> None:
    """What blocks keep is what the planner says."""
    size = ["--hidden", "64", "--layers", "2", "--length", "32", "--peaks", "1", "--rounds", "0"]
    memory.main([*size, "--recompute", "off", "2", "--out", str(tmp_path), "--no-plot"])
    rows = {row["name"]: row for row in json.loads((tmp_path / "memory-llama-cpu.json").read_text())["rows"]}
    assert rows["2"]["off_by"] == pytest.approx(0, abs=0.02)
    assert rows["2"]["saved"] < rows["off"]["saved"]
    assert rows["2"]["products"] == rows["off"]["products"]
