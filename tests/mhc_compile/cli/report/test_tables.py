"""Tables say what the log says, escaped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mhc_compile.cli.report import runs, tables
from tests.mhc_compile.cli.report.logs import look, write


@pytest.fixture
def run(tmp_path: Path) -> runs.Run:
    return runs.load([write(tmp_path / "a&b", [look(3.0), look(1.25, gain=4.0)])])[0]


def test_the_overview_tells_how_a_run_ended(run: runs.Run) -> None:
    shown = tables.overview([run])
    for cell in ("a&amp;b", "Net&lt;/script&gt;", "mhc", "11", "1.2500", "4.000", "2 of 2"):
        assert f">{cell}</td>" in shown


def test_streams_that_are_equal_are_not_apart(tmp_path: Path) -> None:
    (run,) = runs.load([write(tmp_path, [look(spread=1e-8)])])
    assert ">0 of 2</td>" in tables.overview([run])


def test_the_map_has_sites_and_every_no_with_its_reason(run: runs.Run) -> None:
    shown = tables.model_map(run)
    for cell in ("a.&lt;b&gt;", "pre-norm", "1 of 2", "2×5×16", "relu", "net.py:7", "no-skip", "print"):
        assert f">{cell}</td>" in shown
    assert ">neither is computed from the other</td>" in shown


def test_parameters_memory_and_kernels_are_told(run: runs.Run) -> None:
    shown = tables.setup(run)
    assert "100 of mHC on top of 900 (11.11%)" in shown
    assert "2 KiB (recompute=&#x27;auto&#x27;)" in shown
    assert "2 sites in blocks of 2" in shown
    assert "none: no compiler" in shown


def test_every_site_has_a_row(run: runs.Run) -> None:
    assert tables.sites(run).count("<tr>") == 1 + 2


def test_what_the_log_lacks_is_said(run: runs.Run) -> None:
    bare = dataclasses.replace(run, model={}, steps=())
    assert "no map of this model" in tables.model_map(bare)
    assert "Nothing was written" in tables.setup(bare)
    assert ">–</td>" in tables.overview([bare])
    failed = dataclasses.replace(run, model={"map": {"error": "a <b> c"}})
    assert "a &lt;b&gt; c" in tables.model_map(failed)
