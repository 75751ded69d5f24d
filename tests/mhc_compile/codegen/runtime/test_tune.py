from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch

from mhc_compile.codegen import Spec, generate
from mhc_compile.codegen.inspect.record import arguments
from mhc_compile.codegen.runtime import build, cache, space, tune
from mhc_compile.codegen.runtime.space import Device

SEAM = Spec("seam", 2, 64)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "kernels"))
    monkeypatch.delenv(tune.VARIABLE, raising=False)
    monkeypatch.setattr(tune, "_KNOWN", {})
    return tmp_path / "kernels"


class Machine:
    """A module whose calls note their tiles, and a clock that reads how long they pretend to take."""

    def __init__(self, seconds: Callable[[tune.Tiles], float], spec: Spec = SEAM) -> None:
        self.module = ModuleType("mhc_kernels.toy_0123456789ab")
        real = build.load(generate(spec), spec.name)
        self.module.__dict__.update(SPEC=real.SPEC, TILES=real.TILES, forward=self.run, backward=self.run)
        self.seconds, self.last, self.runs = seconds, 0.0, 0

    def run(self, *_: Any, tiles: tune.Tiles) -> None:
        self.runs += 1
        self.last = self.seconds(tiles)

    def clock(self, call: Callable[[], object]) -> float:
        call()
        return self.last

    def tune(self, direction: str = "forward") -> tune.Tiles:
        return tune.tune(self.module, direction, [], 8192, Device(), self.clock)


def test_the_fastest_of_each_kernel_is_kept() -> None:
    wanted = {name: space.candidates(SEAM, name, 8192)[3] for name in ("project", "read")}
    machine = Machine(lambda tiles: 9.0 - sum(tiles[name] == tile for name, tile in wanted.items()))
    found = machine.tune()
    assert {name: found[name] for name in wanted} == wanted
    assert "both" not in found
    assert machine.runs == 1 + sum(min(tune.TRIES, len(space.candidates(SEAM, k, 8192))) for k in (*wanted, "both"))


def test_one_launch_is_taken_where_it_is_faster() -> None:
    assert "both" in Machine(lambda tiles: 1.0 if "both" in tiles else 2.0).tune()


def test_the_default_stays_where_nothing_is_faster() -> None:
    machine = Machine(lambda tiles: 1.0)
    assert machine.tune() == machine.module.TILES
    assert machine.tune("backward") == machine.module.TILES


def test_what_does_not_fit_is_passed_over() -> None:
    from triton.runtime.errors import OutOfResources

    def seconds(tiles: tune.Tiles) -> float:
        if tiles["project"] != machine.module.TILES["project"]:
            raise OutOfResources(300000, 232448, "shared memory")
        return 1.0

    machine = Machine(seconds)
    assert machine.tune()["project"] == machine.module.TILES["project"]


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        Machine(lambda _: 1 / 0).tune()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Tensors that say they are on a GPU."""
    properties = mock.Mock(multi_processor_count=132, max_threads_per_multi_processor=2048, warp_size=32)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return [mock.Mock(device=torch.device("cuda"))]


def test_nothing_is_tuned_unless_asked(gpu: list[Any], folder: Path) -> None:
    machine = Machine(lambda _: 1.0)
    assert tune.tiles(machine.module, "forward", gpu, 100) == machine.module.TILES
    assert machine.runs == 0
    assert not folder.exists() or not list(folder.glob("*.json"))


def test_tuned_once_per_power_of_two(gpu: list[Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda tiles: 1.0 if "both" in tiles else 2.0)
    monkeypatch.setenv(tune.VARIABLE, "1")
    monkeypatch.setattr(tune, "_median", machine.clock)
    found = tune.tiles(machine.module, "forward", gpu, 100)
    assert "both" in found
    (path,) = folder.glob("*.json")
    assert path.name == "toy_0123456789ab_forward_nvidia-h200_128.json"
    assert json.loads(path.read_text()) == found
    before = machine.runs
    assert tune.tiles(machine.module, "forward", gpu, 128) == found
    tune._KNOWN.clear()
    monkeypatch.delenv(tune.VARIABLE)  # another process, later
    assert tune.tiles(machine.module, "forward", gpu, 65) == found
    assert machine.runs == before
    assert tune.tiles(machine.module, "forward", gpu, 129) == machine.module.TILES


def test_processes_of_one_group_take_what_one_has_found(
    gpu: list[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(lambda tiles: 1.0 if "both" in tiles else 2.0)
    monkeypatch.setenv(tune.VARIABLE, "1")
    monkeypatch.setattr(tune, "_median", machine.clock)
    found = tune.tiles(machine.module, "forward", gpu, 100)
    before = machine.runs
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for _ in range(2):  # each of two processes
        tune._KNOWN.clear()
        assert tune.tiles(machine.module, "forward", gpu, 100) == found
        assert tune.tiles(machine.module, "backward", gpu, 100) == machine.module.TILES
    assert machine.runs == before


def test_nothing_is_tuned_while_a_graph_is_captured(gpu: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda _: 1.0)
    monkeypatch.setenv(tune.VARIABLE, "1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    tune.tiles(machine.module, "forward", gpu, 100)
    assert machine.runs == 0


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"project": 3}', '{"project": {"BT": "x"}}', '{"rm": {"BT": 1}}'],
    ids=["empty", "cut", "list", "number", "text", "other"],
)
def test_a_file_that_holds_something_else_is_ignored(gpu: list[Any], folder: Path, text: str) -> None:
    machine = Machine(lambda _: 1.0)
    cache.keep(tune.key(machine.module, "forward", "NVIDIA H200", 100), text)
    assert tune.tiles(machine.module, "forward", gpu, 100) == machine.module.TILES


def test_on_a_cpu_and_without_tokens_the_default_is_used() -> None:
    module = build.load(generate(SEAM), SEAM.name)
    tensors = list(arguments(module.forward, SEAM, 3).values())
    assert tune.tiles(module, "forward", tensors, 3) is module.TILES


def test_kernels_of_each_op() -> None:
    assert tune.kernels(SEAM, "forward") == ("project", "read", "both")
    assert tune.kernels(SEAM, "backward") == ("coefs", "streams", "back")
    assert tune.kernels(Spec("coefficients", 2, 64), "forward") == ("project", "read")
    assert tune.kernels(Spec("leave", 2, 64), "backward") == ("leave_backward",)
