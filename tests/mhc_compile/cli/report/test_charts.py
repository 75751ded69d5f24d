"""Plots hold what the runs hold, with gaps where that is no number."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mhc_compile.cli.report import charts, runs
from tests.mhc_compile.cli.report.logs import look, write

OVER_RUNS: dict[str, Callable[..., charts.Spec]] = {
    "loss": charts.loss,
    "gradient_norm": charts.gradient_norm,
    "composite_gain": charts.composite_gain,
    "gain_by_site": charts.gain_by_site,
    "spread": charts.spread,
}


@pytest.fixture
def two(tmp_path: Path) -> list[runs.Run]:
    calm = write(tmp_path / "mhc", [look(3.0), look(math.nan), look(1.0, gain=1.6)])
    wild = write(tmp_path / "hc", [look(3.0), look(2.5, gain=3000.0), look(math.inf, gain=math.nan)])
    return runs.load([calm, wild])


def rows(spec: charts.Spec, run: str, **more: Any) -> list[charts.Row]:
    wanted = {"run": run, **more}
    return [row for row in spec["data"]["values"] if all(row[name] == value for name, value in wanted.items())]


def test_what_is_no_number_is_a_gap(two: list[runs.Run]) -> None:
    assert [row["loss"] for row in rows(charts.loss(two), "mhc")] == [3.0, None, 1.0]
    assert [row["loss"] for row in rows(charts.loss(two), "hc")] == [3.0, 2.5, None]
    gains = rows(charts.composite_gain(two), "hc", way="forward")
    assert [row["gain"] for row in gains] == [1.5, 3000.0, None]


def test_norms_of_model_and_parameters_are_lines_of_their_own(two: list[runs.Run]) -> None:
    spec = charts.gradient_norm(two)
    assert [row["norm"] for row in rows(spec, "mhc", of="model")] == [2.0] * 3
    assert [row["norm"] for row in rows(spec, "mhc", of="mHC parameters")] == [0.5] * 3


def test_an_axis_is_logarithmic_where_there_is_something_to_show(two: list[runs.Run]) -> None:
    assert charts.composite_gain(two)["encoding"]["y"]["scale"] == {"type": "log"}
    assert charts.composite_gain(two[:1])["encoding"]["y"]["scale"]["domain"] == [0.9, 1.6]


def test_matrices_are_those_of_the_log_with_their_sums(two: list[runs.Run]) -> None:
    spec = charts.matrices(two[0])
    first = spec["data"]["values"][0]
    assert first["h"][1] == [0.025, 0.925, 0.025, 0.025]
    assert first["row_sums"] == first["column_sums"] == [1.0] * 4
    assert {row["step"] for row in spec["data"]["values"]} == {0, 10, 20}
    assert spec["usermeta"]["steps"] == [0, 10, 20]
    assert spec["usermeta"]["sites"] == 2


def test_colors_repeat_where_there_are_many_runs(two: list[runs.Run]) -> None:
    many = [dataclasses.replace(two[0], name=str(i)) for i in range(10)]
    scale = charts.loss(many)["encoding"]["color"]["scale"]
    assert len(scale["range"]) == len(scale["domain"]) == 10


@pytest.mark.parametrize("name", [*OVER_RUNS, "matrices"])
def test_vega_lite_takes_the_plot(name: str, two: list[runs.Run]) -> None:
    vl_convert: Any = pytest.importorskip("vl_convert")
    spec = charts.matrices(two[1]) if name == "matrices" else OVER_RUNS[name](two)
    made = vl_convert.vegalite_to_vega({**spec, "width": 300} if spec["data"]["values"] else spec)
    assert made["marks"]
    json.dumps(spec, allow_nan=False)
