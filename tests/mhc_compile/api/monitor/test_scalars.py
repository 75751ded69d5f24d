"""The numbers that go to TensorBoard and to Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mhc_compile.api.monitor.scalars import numbers, writers
from mhc_compile.errors import ConfigError, MissingDependencyError

RECORD: dict[str, Any] = {
    "kind": "step",
    "step": 7,
    "loss": 2.5,
    "grad_norm": {"model": 3.0, "mhc": 4.0, "total": 5.0, "share": 0.64},
    "sites": {
        "region": [0, 0, 1],
        "spread": [0.1, 0.3, 0.2],
        "forward": [1.0, 1.0, 1.0],
        "backward": [1.0, 1.5, 1.0],
        "composite_forward": [1.0, 1.0, 1.0],
        "composite_backward": [1.6, 1.5, 1.0],
    },
}


def test_the_worst_of_all_sites_is_a_number() -> None:
    found = dict(numbers(RECORD))
    assert found["loss"] == 2.5
    assert found["grad_norm/share"] == 0.64
    assert found["gain/composite_backward"] == 1.6
    assert found["gain/backward"] == 1.5
    assert (found["spread/region_0"], found["spread/region_1"]) == (0.3, 0.2)
    assert not dict(numbers({"kind": "warning", "step": 7}))


def test_unknown_and_missing_writers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not 'comet'"):
        writers(("comet",), tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install wandb"):
        writers(("wandb",), tmp_path)


def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (writer,) = writers("tensorboard", tmp_path)
    writer.write(RECORD)
    writer.close()
    assert list(tmp_path.glob("events.out.tfevents.*"))
