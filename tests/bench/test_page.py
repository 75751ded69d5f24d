"""bench/page: what tables and notes say of results; whether docs/benchmarks.md is up to date, tests/project asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import page

ENVIRONMENT = {
    "date": "2026-11-26T10:00:00+00:00", "git": "abc1234", "cpu": "a CPU", "cores": 2, "threads": 2, "load": 0.5,
    "device": "cpu", "versions": {"torch": "2.13.0", "numpy": "2.0", "triton": None},
}  # fmt: skip
ARGUMENTS = {"hidden": 64, "layers": 2, "dtype": "float32", "batch": 4, "length": 256, "prompt": 256, "streams": 4}


def timing(ratio: float) -> dict[str, Any]:
    return {"median": 0.1 * ratio, "ratio": ratio, "ratio_low": ratio - 0.01, "ratio_high": ratio + 0.01}


def row(name: str, ratio: float, decode: float, **more: Any) -> dict[str, Any]:
    times = {"forward + backward": timing(ratio), "decode": timing(decode)}
    library = name if name == "peer" else None
    given = {"name": name, "library": library, "version": library and "1.0", "why": "", "eager": ""}
    return {**given, "times": times, "saved_bytes": int(1e6 * ratio), **more}


def made(folder: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> str:
    payload = {"environment": ENVIRONMENT, "arguments": ARGUMENTS, "rows": rows}
    (folder / "train-64-float32-cpu.json").write_text(json.dumps(payload))
    monkeypatch.setattr(page.results, "__defaults__", (folder,))
    return page.field()


def test_a_size_has_a_table_and_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = {"compile": {"compile_seconds": 9.0, "ratio": 0.9}, "memory": {"peak_bytes": 5e6, "ratio": 1.1}}
    rows = [
        row("plain", 1.0, 1.0, **compiled),
        row("mhc", 1.1, 1.3, **compiled),
        row("peer", 1.4, 1.2, eager="eager: it does not compile"),
        {"name": "bad", "library": "bad", "version": "2", "why": "its streams do not mix", "eager": ""},
    ]
    text = made(tmp_path, rows, monkeypatch)
    assert "### 64 features, 2 layers, float32" in text
    assert "a CPU, 2 threads, load 0.5; torch 2.13.0; 2026-11-26, revision abc1234." in text
    assert "| plain | 100 ms |  |  | 100 ms | 9 s | 5 MB | 1 MB |" in text
    assert "| mhc | 1.10 (1.09 to 1.11) |  |  | 1.30 (1.29 to 1.31) | 0.90 | 1.10 | 1.10 |" in text
    assert "| peer 1.0 (eager) | 1.40" in text
    assert (
        "* mhc costs more than plain in: forward + backward 1.10, decode 1.30, memory 1.10; no more in: compile 0.90."
        in text
    )
    assert "* **decode: peer is ahead of mhc**, 1.20 against 1.30." in text
    assert "what mhc adds to plain is 25% of what the best other library, peer, adds" in text
    assert "* bad has no speed: its streams do not mix." in text
    assert "* peer: eager: it does not compile" in text


def test_what_is_noisy_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = row("peer", 1.05, 1.2)
    noisy["times"]["forward + backward"] |= {"ratio_low": 0.8, "ratio_high": 1.9}
    text = made(tmp_path, [row("plain", 1.0, 1.0), row("mhc", 1.1, 1.3), noisy], monkeypatch)
    assert "* forward + backward: too noisy to judge peer, whose quartiles are more than 0.5 apart." in text
    assert "forward + backward: peer is ahead" not in text
    assert "**decode: peer is ahead of mhc**" in text


def test_without_results_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.results, "__defaults__", (tmp_path,))
    assert {make() for make in page.MAKERS.values()} == {"Nothing has been measured yet."}


@pytest.mark.parametrize("name", page.MAKERS)
def test_every_table_has_rows(name: str) -> None:
    lines = [line for line in page.MAKERS[name]().splitlines() if line.startswith("|")]
    if name != "the field" or page.results("train-*-*-*.json"):
        assert len(lines) > 2
        assert len({line.count(" | ") for line in lines if line.startswith("| ---")}) >= 1


@pytest.mark.parametrize(
    ("value", "text"), [(12.345, "12.3 s"), (0.0123, "12.3 ms"), (4.5e-5, "45 us"), (0.0, "0 us")], ids=str
)
def test_seconds_have_their_unit(value: float, text: str) -> None:
    assert page._seconds(value) == text
