"""The monitor in a training loop: what it writes, what it costs the loop, and when it warns."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mhc_compile as mhc
from mhc_compile.api.monitor import arguments
from mhc_compile.api.monitor.run_log import FILE, read
from mhc_compile.errors import CaptureError, ConfigError, NotUpgradedError
from tests.nets.small import Net, inputs, made, upgraded

pytestmark = pytest.mark.xdist_group("monitor")  # what is made once is made by one worker

Records = list[dict[str, Any]]


def train(model: nn.Module, monitor: mhc.Monitor, steps: int, lr: float = 1e-2) -> list[float]:
    optimizer = torch.optim.AdamW(mhc.param_groups(model, lr=lr, phi_lr_scale=10))
    losses = []
    for _ in range(steps):
        loss = model(inputs()).square().mean()
        loss.backward()
        monitor.step(loss, optimizer, (inputs(),))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float], int]:
    """A run of seven steps with a look at every third, and how many frames Dynamo compiled for the model meanwhile."""
    folder, model = tmp_path_factory.mktemp("run"), upgraded(Net, 2)
    model.compile(backend="mhc", options={"compiler": "eager"})
    model(inputs()).sum().backward()
    model.zero_grad()
    with mhc.Monitor(model, every=3, to=folder) as monitor, torch._dynamo.config.patch(error_on_recompile=True):
        with torch._dynamo.config.patch(error_on_recompile=False):
            losses = train(model, monitor, 1)
        frames = torch._dynamo.utils.counters["frames"]["ok"]
        losses += train(model, monitor, 6)
        compiled = torch._dynamo.utils.counters["frames"]["ok"] - frames
    return folder, losses, compiled


def of_kind(folder: Path, kind: str) -> Records:
    return [record for record in read(folder / FILE)[0] if record["kind"] == kind]


def test_it_looks_at_every_third_step_and_writes_strict_json(run: tuple[Path, list[float], int]) -> None:
    folder, losses, _ = run
    steps = of_kind(folder, "step")
    assert [record["step"] for record in steps] == [0, 3, 6]
    assert steps[1]["loss"] == pytest.approx(losses[3], rel=1e-5)
    assert steps[1]["loss_mean"] == pytest.approx(sum(losses[1:4]) / 3, rel=1e-5)
    assert steps[1]["loss_max"] == pytest.approx(max(losses[1:4]), rel=1e-5)
    assert steps[1]["lr"] == [0.01, 0.1, 0.01]
    for record in steps:
        norms = record["grad_norm"]
        assert norms["total"] == pytest.approx(math.hypot(norms["model"], norms["mhc"]), rel=1e-4)
        assert norms["share"] == pytest.approx((norms["mhc"] / norms["total"]) ** 2, rel=1e-3)
        assert 0 < norms["mhc"] < norms["model"]
        assert record["sites"]["name"] == ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
    assert steps[0]["sites"]["spread"][0] < 1e-6 < 1e-4 < steps[2]["sites"]["spread"][0]
    for line in (folder / FILE).read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_what_is_known_of_the_model_is_written_once(run: tuple[Path, list[float], int]) -> None:
    (model,) = of_kind(run[0], "model")
    assert model["name"] == "Net"
    assert model["config"]["connection"] == "mhc"
    assert model["map"]["sites"][0]["name"] == "blocks.0.attn"
    assert model["map"]["memory"]["runs"]
    assert model["kernels"][0]["device"] == "cpu"
    assert model["kernels"][0]["language"] in ("C++", None)


def test_neither_the_training_graph_nor_the_monitors_is_compiled_again(run: tuple[Path, list[float], int]) -> None:
    assert run[2] == 0


@pytest.mark.slow
def test_looking_does_not_change_the_training(run: tuple[Path, list[float], int]) -> None:
    model = upgraded(Net, 2)
    model.compile(backend="mhc", options={"compiler": "eager"})
    optimizers = [torch.optim.AdamW(mhc.param_groups(model, lr=1e-2, phi_lr_scale=10)) for _ in range(2)]
    losses = []
    for step in range(7):
        loss = model(inputs()).square().mean()
        loss.backward()
        optimizers[step > 0].step()  # the run began anew behind its first step
        model.zero_grad()
        losses.append(loss.item())
    assert losses == run[1]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return upgraded(Net, 2)


def test_a_log_goes_on_and_a_line_that_was_cut_off_is_left_out(model: nn.Module, tmp_path: Path) -> None:
    with mhc.Monitor(model, every=5, to=tmp_path) as monitor:
        for _ in range(6):
            monitor.step(1.0)
    with (tmp_path / FILE).open("a") as log:
        log.write('{"kind":"step","st')
    with mhc.Monitor(model, every=5, to=tmp_path) as monitor:
        assert monitor.steps == 6
        for _ in range(5):
            monitor.step(2.0)
    records, broken = read(tmp_path / FILE)
    assert [record["step"] for record in records if record["kind"] == "step"] == [0, 5, 10]
    assert broken == 1


@pytest.mark.slow
def test_a_probe_is_looked_at_in_place_of_the_batch(model: nn.Module, tmp_path: Path) -> None:
    with mhc.Monitor(model, every=1, to=tmp_path, probe={"x": inputs(2, 3)}) as monitor:
        monitor.step(1.0, None, (inputs(),))
        assert monitor.gains is not None
        assert monitor.gains.sites[0].tokens == 6


def test_losses_that_are_no_numbers_are_kept(model: nn.Module, tmp_path: Path) -> None:
    with mhc.Monitor(model, every=2, to=tmp_path) as monitor:
        for loss in (1.0, float("nan"), torch.tensor(float("inf"))):
            monitor.step(loss)
    last = of_kind(tmp_path, "step")[-1]
    assert last["loss"] == math.inf
    assert math.isnan(last["loss_max"])


def test_batches_as_models_are_called() -> None:
    assert arguments({"x": 1}) == ((), {"x": 1})
    assert arguments([1, 2]) == ((1, 2), {})
    assert arguments(3) == ((3,), {})


# -- what is wrong ----------------------------------------------------------------------------------------------------


def test_bad_options_say_what_is_right(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every must be an integer >= 1"):
        mhc.Monitor(model, every=0, to=tmp_path)
    with pytest.raises(ConfigError, match="bound must be a number > 1"):
        mhc.Monitor(model, bound=1.0, to=tmp_path)
    with pytest.raises(ConfigError, match="'tensorboard', 'wandb', not 'comet'"):
        mhc.Monitor(model, to=tmp_path, also=("comet",))
    with pytest.raises(NotUpgradedError):
        mhc.Monitor(made(), to=tmp_path)


def test_the_first_look_raises_and_a_later_one_warns(model: nn.Module, tmp_path: Path) -> None:
    with mhc.Monitor(model, every=1, to=tmp_path) as monitor:
        with pytest.raises(CaptureError, match="did not run with the arguments"):
            monitor.step(1.0, None, (inputs()[..., :3],))
        monitor.step(1.0, None, (inputs(),))
        with pytest.warns(mhc.MHCWarning, match="could not look at step 2, and training goes on"):
            monitor.step(1.0, None, (inputs()[..., :3],))
    assert "error" in of_kind(tmp_path, "step")[-1]


@pytest.mark.slow
def test_trouble_is_told_once_and_written(model: nn.Module, tmp_path: Path) -> None:
    """Alarms listen to every look: streams that never part ring once, whatever comes later."""
    with mhc.Monitor(model, every=30, to=tmp_path) as monitor, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(121):
            monitor.step(1.0, None, (inputs(),))
    assert [str(each.message).split(" in region")[0] for each in told] == ["dead streams at step 60:"]
    (warning,) = of_kind(tmp_path, "warning")
    assert warning["about"] == "dead-streams"
