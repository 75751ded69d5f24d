"""bench/kernels on a CPU: what it times, and what it writes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from bench.kernels import cpu


def test_a_seam_against_a_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu, "SHAPES", ((24, torch.float32),))
    monkeypatch.setattr(cpu, "TOKENS", 5)
    cpu.main(argparse.Namespace(rounds=3, folder=tmp_path))
    one, two = json.loads((tmp_path / "seams-cpu.json").read_text("utf-8"))["rows"]
    assert (one["threads"], two["threads"]) == (1, 2)
    assert one["copy"]["ratio"] == 1
    assert all(row[name]["median"] > 0 for row in (one, two) for name in ("copy", "forward", "backward"))
