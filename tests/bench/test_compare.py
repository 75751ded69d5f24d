"""bench/compare: what counts as a regression, in every kind of result that the benchmarks write."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench import compare
from bench.common import RESULTS

TIMING = {"median": 0.1, "ratio": 1.2, "ratio_low": 1.18, "ratio_high": 1.22, "ratio_best": 1.1, "samples": [0.1, 0.1]}
TRAIN: dict[str, Any] = {
    "environment": {"cpu": "one", "device": "cpu", "threads": 2},
    "arguments": {"hidden": 64},
    "rows": [
        {"name": "plain", "why": "", "times": {}, "saved_bytes": 1000, "parameters": 10},
        {
            "name": "mhc", "why": "", "times": {"decode": TIMING}, "saved_bytes": 1200, "parameters": 12,
            "compile": {"compile_seconds": 9.0, "upgrade_seconds": 1.0, "graphs": 1, "ratio": 0.9},
            "memory": {"peak_bytes": 500, "peaks": [490, 500, 510], "ratio": 1.1},
        },
    ],
}  # fmt: skip


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The result with one value replaced."""
    result = copy.deepcopy(TRAIN)
    at: Any = result["rows"]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return result


def verdicts(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    return {name: verdict for verdict, name, *_ in compare.compared(old, new)[0] if verdict}


DECODE = (1, "times", "decode")


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        pytest.param(DECODE, TIMING, {}, id="same"),
        pytest.param(
            DECODE, TIMING | {"ratio": 1.3, "ratio_low": 1.27, "ratio_high": 1.4}, {"mhc / times / decode": "worse"},
            id="band-above",
        ),
        pytest.param(DECODE, TIMING | {"ratio": 1.3, "ratio_low": 1.2, "ratio_high": 1.4}, {}, id="bands-overlap"),
        pytest.param(
            DECODE, TIMING | {"ratio": 1.1, "ratio_low": 1.09, "ratio_high": 1.12}, {"mhc / times / decode": "better"},
            id="band-below",
        ),
        pytest.param(DECODE, TIMING | {"median": 9.0}, {}, id="seconds-of-another-machine"),
        pytest.param((1, "saved_bytes"), 1300, {"mhc / saved_bytes": "worse"}, id="bytes"),
        pytest.param((1, "saved_bytes"), 1210, {}, id="hardly-more-bytes"),
        pytest.param((1, "compile", "ratio"), 1.0, {}, id="compiled-once-within-tolerance"),
        pytest.param((1, "compile", "ratio"), 1.9, {"mhc / compile / compile_seconds": "worse"}, id="compile"),
        pytest.param((1, "memory", "peaks"), [700, 710, 705], {"mhc / memory / peaks": "worse"}, id="peaks"),
        pytest.param((1, "why"), "it is wrong", {"mhc / why": "worse"}, id="no-longer-right"),
    ],
)  # fmt: skip
def test_a_regression_is_a_band_above_the_old_one(path: tuple[Any, ...], value: Any, expected: dict[str, str]) -> None:
    assert verdicts(TRAIN, changed(path, value)) == expected


def test_a_change_below_the_least_is_none() -> None:
    old, new = compare.Cost(1.0, 0.999, 1.001), compare.Cost(1.01, 1.009, 1.011)
    assert compare.judged(old, new) == ""


def test_a_verdict_that_turns_is_a_regression() -> None:
    old = {"rows": [{"library": "timm", "name": "vit", "verdict": "pass", "seconds": 3.0}]}
    new = {"rows": [{"library": "timm", "name": "vit", "verdict": "wrong", "seconds": 3.0}]}
    assert verdicts(old, new) == {"timm vit / verdict": "worse"}
    assert verdicts(new, old) == {"timm vit / verdict": "better"}


def test_a_kernel_is_compared_by_its_seconds() -> None:
    timed = {"seconds": 1e-3, "low": 0.9e-3, "high": 1.1e-3, "host": 0.0, "why": ""}
    slow = {"seconds": 2e-3, "low": 1.9e-3, "high": 2.1e-3, "host": 0.0, "why": ""}
    old, new = ({"rows": {"peers": {"rows": [{"contender": "a", "n": 4, "both": each}]}}} for each in (timed, slow))
    assert verdicts(old, new) == {"peers / rows / a 4 / both": "worse"}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_has_quantities_and_equals_itself(path: Path) -> None:
    result = json.loads(path.read_text("utf-8"))
    lines, gone = compare.compared(result, result)
    assert lines
    assert {line[0] for line in lines} == {""}
    assert gone == []


def write(folder: Path, result: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "train-64-float32-cpu.json").write_text(json.dumps(result))
    return str(folder)


def test_the_exit_status_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old", TRAIN)
    worse = changed(DECODE, TIMING | {"ratio": 1.5, "ratio_low": 1.4, "ratio_high": 1.6})
    worse["environment"]["cpu"] = "another"
    new = write(tmp_path / "new", worse)
    assert compare.main([old, old]) == 0
    assert compare.main([old, new]) == 1
    shown = capsys.readouterr().out
    assert "mhc / times / decode" in shown
    assert "1.4 x .. 1.6 x" in shown
    assert "cpu: one and another" in shown
    assert "1 regressed" in shown
    assert compare.main([new, old]) == 0
    single = tmp_path / "another-name.json"
    single.write_text(json.dumps(worse))
    assert compare.main([f"{old}/train-64-float32-cpu.json", str(single)]) == 1  # two files of other names


def test_what_is_there_on_one_side_only_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = write(tmp_path / "old", TRAIN), write(tmp_path / "new", {**TRAIN, "rows": TRAIN["rows"][:1]})
    (tmp_path / "new" / "more.json").write_text(json.dumps(TRAIN))
    assert compare.main([old, new]) == 0
    shown = capsys.readouterr().out
    assert "are gone, such as mhc / why" in shown
    assert "more.json: only in" in shown


@pytest.mark.skipif(compare._git("rev-parse", "HEAD") == "", reason="no checkout")
def test_a_revision_is_compared_with_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["HEAD", "HEAD"]) == 0
    assert "0 regressed" in capsys.readouterr().out
    assert compare.load("HEAD").keys() >= {"compile_time-cpu.json"}


@pytest.mark.parametrize("where", ["no-such-thing", "empty", "text.json"])
def test_what_is_no_result_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("no json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"no results; give a JSON file|no JSON"):
        compare.main([where, where])
