"""bench/train: the command line, contenders that do not run, what is timed and what is shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.memory import run as memory_run
from bench.train import apart, measures, report, run
from bench.train.contenders import Entry, entry
from bench.train.peers import PEERS
from bench.train.peers.layer import Peer, UnavailableError, library
from bench.train.setup import CUDA, Setup

TINY = Setup(hidden=64, layers=3, batch=2, length=8, prompt=8, rounds=2, compiler="eager")
DEEPSEEK = "transformers/DeepSeek-V4"


def uncompiled(name: str, setup: Setup) -> Entry:
    one = entry(name, setup)
    one.compiled = one.model
    return one


def failing(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("this compiler cannot")


def does_not_compile(name: str, setup: Setup) -> Entry:
    one = uncompiled(name, setup)
    if name != "plain":
        one.compiled = failing
    return one


def missing(model: Any, n: int) -> None:
    library("no-such-library-of-ours", "nothing", "Nothing")


def test_a_library_that_is_missing_says_how_to_get_it() -> None:
    with pytest.raises(UnavailableError, match=r"^not installed: pip install no-such-library-of-ours$"):
        library("no-such-library-of-ours", "nothing", "Nothing")
    with pytest.raises(UnavailableError, match=r"torch .* does not import .*: pip install torch"):
        library("torch", "torch.no_such_module", "Nothing")
    with pytest.raises(UnavailableError, match=r"torch .* has no torch\.Nothing: get another"):
        library("torch", "torch", "Nothing", "get another")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(run, "entry", uncompiled)
    monkeypatch.setitem(PEERS, "gone", Peer("no-such-library-of-ours", "Nothing", missing))
    return run.run(TINY, ["plain", DEEPSEEK, "gone"], ["step", "prefill", "decode"])


def test_contenders_are_timed_and_told(
    rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, deepseek, gone = rows
    assert gone["why"] == "not installed: pip install no-such-library-of-ours"
    assert not gone.get("times")
    assert deepseek["why"] == deepseek["eager"] == ""
    assert plain["times"].keys() == deepseek["times"].keys() == set(measures.TIMED)
    laps = deepseek["times"]
    assert len(laps["training step"]["samples"]) == TINY.rounds
    assert laps["training step"]["median"] > laps["forward + backward"]["median"] > laps["decode"]["median"] > 0
    assert deepseek["parameters"] > plain["parameters"]
    report.show("tiny", rows)
    shown = capsys.readouterr().out
    assert "gone: not installed: pip install no-such-library-of-ours" in shown
    assert DEEPSEEK in shown
    payload = {"environment": {}, "arguments": {"dtype": "float32", "hidden": 64}, "rows": rows}
    (tmp_path / "train-64-float32-cpu.json").write_text(json.dumps(payload))
    assert report.plot(tmp_path, "cpu").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_compile_runs_eager_with_a_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "entry", does_not_compile)
    one, row = run.checked(DEEPSEEK, TINY)
    assert one is not None
    assert row["why"] == ""
    assert row["eager"] == "eager: RuntimeError: this compiler cannot"
    one, row = run.checked("mhc", dataclasses.replace(TINY, layers=1))  # ours is not run eager: it is a backend
    assert one is None
    assert row["why"] == "does not run: RuntimeError: this compiler cannot"


def test_training_leaves_parameters_as_they_were() -> None:
    one = uncompiled("plain", TINY)
    before = {key: value.clone() for key, value in one.model.state_dict().items()}
    measures.times({"plain": one}, TINY, (measures.TRAINING,))
    assert all(torch.equal(value, before[key]) for key, value in one.model.state_dict().items())


def test_decode_reads_the_cache() -> None:
    one = uncompiled("plain", TINY)
    served = measures.served(one, TINY)
    served.prefill()
    decoded = served.decode()
    with torch.no_grad():
        whole = one.model(input_ids=served.ids, logits_to_keep=1).logits
    assert torch.allclose(decoded, whole, atol=1e-5)
    assert torch.equal(served.decode(), decoded)  # each call stands at the same place


def test_setups_of_a_cpu_and_of_a_gpu() -> None:
    args = run.arguments(["--rounds", "3"])
    assert [(s.hidden, s.dtype, s.rounds) for s in run.setups(args)] == [
        (hidden, dtype, 3) for dtype in ("float32", "bfloat16") for hidden in (256, 512, 1024)
    ]
    args.device, args.sizes = "cuda", CUDA
    made = list(run.setups(args))
    assert [(s.hidden, s.dtype, s.length, s.layers) for s in made] == [
        (2560, "bfloat16", 8192, 2), (4096, "bfloat16", 8192, 2), (7168, "bfloat16", 8192, 1)
    ]  # fmt: skip
    assert all(s.device == "cuda" for s in made)


def test_the_gpus_shapes_are_tried_without_one(tmp_path: Path) -> None:
    args = run.arguments(["--device", "cuda", "--dry-run", "--out", str(tmp_path)])
    made = list(run.setups(args))
    assert [s.hidden for s in made] == [160, 256, 448]
    assert {(s.device, s.length, s.compiler, s.dtype) for s in made} == {("cpu", 16, "eager", "bfloat16")}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(["--contenders", "plain", "nobody"], "no contender nobody", id="contender"),
        pytest.param(["--measures", "luck"], "invalid choice", id="measure"),
        pytest.param(
            ["--device", "cuda"], "there is no GPU here", id="no-gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)  # fmt: skip
def test_wrong_words_are_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.arguments(words)
    assert told in capsys.readouterr().err


def test_plain_comes_first() -> None:
    assert run.arguments(["--contenders", "mhc", "plain"]).contenders == ["plain", "mhc"]


def test_ratios_are_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def measured(work: str, setup: Any, names: list[str], environment: Any) -> dict[str, Any]:
        asked.append((names[0], setup.kernels))
        return {"before": [10, 10, 10], "peaks": [30 + 10 * len(asked)] * 3}

    monkeypatch.setattr(memory_run, "apart", measured)
    found = apart.memory(["plain", "mhc", "mhc/reference", DEEPSEEK, "hc"], TINY)
    assert asked == [("plain", "auto"), ("auto", "auto"), ("auto", "reference"), (DEEPSEEK, "auto")]
    assert {name: row["ratio"] for name, row in found.items()} == {
        "plain": 1.0, "mhc": 40 / 30, "mhc/reference": 50 / 30, DEEPSEEK: 2.0
    }  # fmt: skip


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    words = ["--dry-run", "--out", str(tmp_path), "--hidden", "1024", "--dtypes", "float32"]
    run.main([*words, "--contenders", "plain", "mhc", DEEPSEEK, "mhc-pytorch", "--measures", "step", "decode"])
    (written,) = tmp_path.glob("train-64-float32-cpu.json")
    rows = json.loads(written.read_text())["rows"]
    assert [row["name"] for row in rows if row["why"] == ""] == ["plain", "mhc", DEEPSEEK]
