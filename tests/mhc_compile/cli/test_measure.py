"""The measuring library: it must count what it says it counts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mhc_compile.cli import measure


def test_summarize_pairs_ratios_within_a_round() -> None:
    # The machine was three times slower in the second round: paired ratios do not notice.
    samples = {"plain": [1.0, 3.0, 1.0], "mhc": [1.1, 3.3, 1.1]}
    timings = measure.summarize(samples, "plain")
    assert timings["plain"].ratio == 1.0
    assert timings["mhc"].ratio == pytest.approx(1.1)
    assert timings["mhc"].ratio_best == pytest.approx(1.1)
    assert timings["mhc"].median == 1.1
    assert timings["mhc"].ratio_low == pytest.approx(timings["mhc"].ratio_high)


def test_interleave_turns_the_order_and_warms_up() -> None:
    calls: list[str] = []
    steps = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timings = measure.interleave(steps, rounds=3, warmup=1)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert [len(timing.samples) for timing in timings.values()] == [3, 3]


def test_interleave_measures_seconds_against_the_named_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def lasting(seconds: float) -> Callable[[], None]:
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    timings = measure.interleave({"slow": lasting(3.0), "fast": lasting(2.0)}, rounds=3, baseline="fast")
    assert timings["slow"].samples == (3.0, 3.0, 3.0)
    assert (timings["slow"].ratio, timings["fast"].ratio) == (1.5, 1.0)


def test_saved_bytes_counts_each_storage_once_and_no_parameter_or_input() -> None:
    weight = torch.nn.Parameter(torch.ones(8, 8))
    x = torch.ones(4, 8)

    def forward() -> torch.Tensor:
        hidden = x @ weight.t()  # saves x (an input) and a view of the parameter
        root = hidden.exp()  # saves its result: 4*8*4 bytes
        return root * root.view(4, 8)  # saves root twice, once as a view

    assert measure.saved_bytes(forward, exclude=[x]) == 4 * 8 * 4
    assert measure.saved_bytes(forward) == 2 * 4 * 8 * 4


def test_saved_bytes_sees_through_compiled_graphs() -> None:
    torch._dynamo.reset()
    linear = torch.nn.Linear(16, 16, bias=False)
    x = torch.randn(32, 16)
    compiled = torch.compile(lambda t: linear(linear(t)).sum(), backend="aot_eager")
    compiled(x)
    known = [x, *linear.parameters()]
    # The backward of the second linear needs the first one's output, that of the first the input.
    assert measure.saved_bytes(lambda: compiled(x), exclude=known) == 32 * 16 * 4


def test_saved_bytes_without_grad_is_zero() -> None:
    layer = torch.nn.Linear(4, 4)
    with torch.no_grad():
        assert measure.saved_bytes(lambda: layer(torch.ones(2, 4)).exp()) == 0


def test_cold_caches_are_empty_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/nowhere/mine")
    with measure.cold_caches() as first:
        assert first.is_dir()
        assert list(first.iterdir()) == []
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(first)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/nowhere/mine"
    assert not first.exists()


def test_what_cold_caches_compiled_outlives_them() -> None:
    compiled = torch.compile(lambda x: x.sin() + 1, backend="eager")
    with measure.cold_caches():
        expected = compiled(torch.ones(3))
    with measure.cold_caches(reset=False), torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(compiled(torch.ones(3)), expected)


def test_environment_names_versions_hardware_and_time() -> None:
    found = measure.environment()
    versions = found["versions"]
    assert isinstance(versions, dict)
    assert versions["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device"] == "cpu"
    assert found["cpu"]
    assert str(found["date"]).endswith("+00:00")


def test_write_json_makes_the_folder(tmp_path: Path) -> None:
    path = measure.write_json(tmp_path / "a" / "b.json", {"ratio": 1.5})
    assert json.loads(path.read_text()) == {"ratio": 1.5}
