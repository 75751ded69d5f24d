"""The demo, at toy size: it runs whole, and what it reports is what it did."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from mhc_compile import cli
from mhc_compile.cli import demo, measure
from mhc_compile.cli.demo import summary
from mhc_compile.errors import MissingDependencyError

NEEDED = [pytest.importorskip(name) for name in demo.NEEDS]
TINY = ["--hidden", "32", "--layers", "1", "--batch", "2", "--length", "16"]


@pytest.mark.core(1)
@pytest.mark.usefixtures("by_inductor")
def test_the_demo_runs_whole(tmp_path: Path) -> None:
    assert cli.main(["demo", "--steps", "2", "--streams", "2", "--out", str(tmp_path), *TINY]) == 0

    assert (tmp_path / "mhc_demo.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "mhc_demo.json").read_text())
    residual, hc, mhc = told["results"]
    assert [row["name"] for row in told["results"]] == ["residual", "hc", "mhc"]
    assert told["steps"] == 2
    for row in (residual, hc, mhc):
        # Exact at the start: before the first update all three compute the same loss.
        assert row["losses"][0] == pytest.approx(residual["losses"][0], rel=1e-5)
        assert row["losses"][0] == pytest.approx(math.log(256), rel=0.05)
        assert len(row["losses"]) == 2
        assert row["validation"][-1] == [2, row["validation_loss"]]
        assert row["compile_seconds"] > 0
    assert residual["step_ratio"] == 1.0
    assert residual["extra_parameters"] == residual["extra_saved_bytes"] == 0 < residual["saved_bytes"]
    assert residual["gain"] is residual["sites_alive"] is None
    for row in (hc, mhc):
        assert 1 <= row["gain"] < 1.5
        assert [step for step, _ in row["gains"]] == [1, 2]
        assert row["sites_alive"] == [2, 2]  # they have parted at the first step
        assert row["largest_gradient_norm"] == max(row["norms"]) > 0
        assert row["extra_parameters"] > 0
        assert row["extra_saved_bytes"] > 0


def test_one_step_would_time_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", "--steps", "1"])
    assert "at least 2" in capsys.readouterr().err


def test_the_run_is_fitted_to_the_time_left() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    runner = summary.Runner("mhc", model, optimizer, schedule, extra_parameters=0)
    runner.seconds = [9.0, 1.0, 0.25, 0.25]
    # A round of two takes 1 s; 8 s of the 100 are for validation.
    assert demo.fit([runner, runner], step=4, most=1000, left=100.0) == 4 + 92
    assert demo.fit([runner, runner], step=4, most=50, left=100.0) == 50
    assert demo.fit([runner, runner], step=4, most=1000, left=-5.0) == 4


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    length = demo.Length(100)
    assert length.rate(0) == pytest.approx(1 / 20)
    assert length.rate(19) == length.rate(20) == pytest.approx(1.0)
    assert length.rate(100) == pytest.approx(0.1)


def test_missing_packages_are_named_together_with_the_remedy() -> None:
    with pytest.raises(MissingDependencyError, match=r"no_such_a, no_such_b; .*pip install no_such_a no_such_b"):
        measure.require("no_such_a", "torch", "no_such_b")
