"""bench/memory: what it reads, what it compares, and a tiny model in processes of their own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import common
from bench.memory import report, resident
from bench.memory import run as memory
from bench.memory.run import Setup
from mhc_compile.passes.plan_recompute.site_run import SiteRun
from mhc_compile.plan.memory import Memory

LINUX = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
STATUS = "Name:\tpython\nVmPeak:\t  9000 kB\nVmHWM:\t    1234 kB\nVmRSS:\t     100 kB\nThreads:\t2\n"
PLAN = {"kept": 900, "peak": 1000, "without": 2000, "before_rewrite": 300, "moved": 50, "token_sites": 20, "sizes": [2]}
PRODUCTS = {"forward": {"mm": 3}, "backward": {"mm": 6, "addmm": 1}}


def row(name: str, saved: int, peaks: list[int], plan: dict[str, Any] | None) -> dict[str, Any]:
    before = [400, 400, 410]
    given = {"baseline": 100, "before": before, "peaks": peaks, "saved": saved}
    return {"name": name, "plan": plan, "products": PRODUCTS, **given}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    measured = [
        row("plain", 5000, [900, 910, 920], None),
        row("2", 5612, [1900, 1700, 1710], PLAN),
        row("auto", 5600, [1800, 1800, 1810], PLAN),
    ]
    return report.compared(measured)


def test_a_field_of_the_status_is_in_bytes() -> None:
    assert resident.status("VmHWM", STATUS) == 1234 * 1024
    assert resident.status("VmRSS", STATUS) == 100 * 1024
    with pytest.raises(ValueError, match="no VmSwap in the status"):
        resident.status("VmSwap", STATUS)


class Scripted:
    """A gauge whose steps add what a list says."""

    def __init__(self, adds: list[int]) -> None:
        self.calls: list[str] = []
        self.adds = iter(adds)
        self.most = 0

    def settle(self) -> None:
        self.calls.append("settle")

    def now(self) -> int:
        self.calls.append("now")
        return 10

    def restart(self) -> None:
        self.calls.append("restart")

    def peak(self) -> int:
        return 10 + next(self.adds)


def test_a_peak_is_the_steps_own() -> None:
    gauge = Scripted([5, 7])
    measured = resident.peaks(gauge, lambda: gauge.calls.append("step"), lambda: gauge.calls.append("rest"), 2)
    assert measured == [(10, 15), (10, 17)]
    assert gauge.calls == ["rest", "settle", "now", "restart", "step"] * 2


# In a process with the allocator's settings, as the benchmark's: here freed blocks may stay resident.
HONEST = """
import torch
from bench.memory import resident
gauge = resident.gauge("cpu")
def step():
    for _ in range(4):
        torch.ones(8 << 20)
step()
small = [torch.ones(64 << 10) for _ in range(128)]
(before, peak), (again, _) = resident.peaks(gauge, step, lambda: small.clear(), 2)
print(peak - before, abs(again - before))
"""


@LINUX
def test_the_resident_set_counts_what_lives_at_once() -> None:
    environment = {**os.environ, **resident.ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-c", HONEST], cwd=common.RESULTS.parents[1], env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    adds, drift = map(int, done.stdout.split())
    assert adds == pytest.approx(32 << 20, rel=0.1)  # one of the four tensors at a time
    assert drift < 4 << 20


def test_extra_bytes_stand_beside_the_prediction(rows: list[dict[str, Any]]) -> None:
    plain, blocks, _ = rows
    assert (plain["peak"], plain["resident_before"], plain["step_adds"], plain["above_baseline"]) == (
        910,
        400,
        510,
        810,
    )
    assert "extra" not in plain
    assert (blocks["saved_predicted"], blocks["extra"], blocks["extra_predicted"]) == (5600, 30.6, 30.0)
    assert blocks["off_by"] == pytest.approx(0.02)
    assert (blocks["step_adds"], blocks["peak_extra"], blocks["peak_extra_predicted"]) == (1300, 790, 700)


def test_without_plain_there_is_nothing_to_compare_with() -> None:
    (only,) = report.compared([row("2", 5612, [1900, 1700, 1710], PLAN)])
    assert "extra" not in only
    assert len(report.line(only)) == len(report.HEADS)


def test_a_line_has_what_was_measured(rows: list[dict[str, Any]]) -> None:
    ratios = {"median": 2.0, "ratio": 0.5, "ratio_low": 0.25, "ratio_high": 0.75}
    rows[1]["time"] = {"off": ratios, "plain": {**ratios, "ratio": 3.0}}
    cells = [dict(zip(report.HEADS, report.line(row), strict=True)) for row in rows]
    assert [cell[""] for cell in cells] == ["plain", "2", "auto"]
    assert cells[0]["L_r"] == cells[0]["off by"] == cells[0]["step"] == ""
    assert (cells[1]["+/token site"], cells[1]["off by"], cells[1]["products bwd"]) == ("30.6 B", "+2.00%", "7")
    assert (cells[1]["step"], cells[1]["to off"], cells[1]["to plain"]) == ("2000 ms", "0.500x", "3.000x")


@pytest.mark.parametrize("timed", [False, True])
def test_a_plot_is_drawn(rows: list[dict[str, Any]], timed: bool, tmp_path: Path) -> None:
    off = row("off", 5700, [2000, 2000, 2000], {**PLAN, "sizes": [0]})
    rows = [*rows, *report.compared([off])]
    for one in rows if timed else ():
        one["time"] = {"off": {"median": 1.0}}
    path = report.plot("a model", rows, tmp_path / "new" / "plot.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_plan_becomes_plain_numbers() -> None:
    run = SiteRun(
        sites=("a", "b", "c"), region=0, streams=4, channels=8, itemsize=4, tokens=10, coefficients=49, starts=True,
        under_checkpoint=False, replays=0, size=2,
    )  # fmt: skip
    aside = dataclasses.replace(run, sites=("d",), under_checkpoint=True)
    plan = memory.plan_of(Memory((run, aside)))
    assert json.loads(json.dumps(plan)) == plan
    assert (plan["sites"], plan["token_sites"], plan["sizes"], plan["kept"]) == (3, 30, [2], run.kept * 10)


def test_names_spell_the_option() -> None:
    spelled = [memory.recompute(name) for name in ("off", "auto", "4", "0.5", "memory:2GiB")]
    assert spelled == ["off", "auto", 4, 0.5, "memory:2GiB"]
    assert type(spelled[2]) is int
    assert memory.contenders(["off", "1", "4", "8", "auto", "1"], Setup(layers=2)) == ["plain", "off", "1", "4", "auto"]


def test_products_within_products_count_once() -> None:
    def event(name: str, parent: Any = None) -> Any:
        return SimpleNamespace(name=name, cpu_parent=parent)

    outer = event("aten::convolution", event("aten::conv2d"))
    events = [
        event("aten::addmm_"),
        outer,
        event("aten::mm", event("aten::inner", outer)),
        event("mm"),
        event("aten::mul"),
    ]
    events.append(event("aten::_scaled_dot_product_flash_attention_for_cpu_backward"))
    found = [memory.product(one) for one in events]
    assert found == ["addmm", "convolution", "", "", "", "_scaled_dot_product_flash_attention_for_cpu_backward"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", list(memory.MODELS))
def test_models_take_their_inputs(model: str, dtype: str) -> None:
    setup = Setup(model, hidden=32, layers=1, length=16, batch=2, dtype=dtype)
    loss = setup.build()(**setup.inputs()).loss
    assert loss.isfinite()
    assert {parameter.dtype for parameter in setup.build().parameters()} == {getattr(torch, dtype)}


@LINUX
@pytest.mark.slow
def test_saved_bytes_are_as_predicted(tmp_path: Path) -> None:
    tiny = "--hidden=32 --layers=2 --length=16 --recompute off 2 --time --peaks=2 --rounds=2".split()
    memory.main([*tiny, "--out", str(tmp_path)])
    (written,) = tmp_path.glob("memory-llama-*.json")
    plain, off, blocks = json.loads(written.read_text())["rows"]
    assert written.with_suffix(".png").exists()
    assert (plain["name"], blocks["name"], blocks["plan"]["sizes"]) == ("plain", "2", [2])
    assert blocks["saved"] == pytest.approx(blocks["saved_predicted"], rel=0.02)
    assert blocks["off_by"] == pytest.approx(0, abs=0.02)
    assert blocks["step_adds"] > 0 < plain["peak"]
    assert set(plain["time"]) == {"off", "plain"}
    assert blocks["saved"] < off["saved"]
    assert blocks["products"] == off["products"]  # no branch runs again
