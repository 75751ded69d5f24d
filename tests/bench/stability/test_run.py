"""bench/stability/run: trains what is missing, keeps what is there, and says what failed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.stability import page, questions, run
from bench.stability.store import PATH, Store
from bench.stability.trial import Trial

TINY = Trial("residual", layers=1, hidden=32, batch=1, length=8, steps=10, warmup=1)
BAD = dataclasses.replace(TINY, connection="mhc", projection="nowhere")


@pytest.mark.slow
def test_a_run_and_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(questions.QUESTIONS, "connections", lambda: [TINY, BAD])
    path = tmp_path / "found.json"
    command = ["connections", "--compiler", "eager", "--jobs", "1", "--out", str(path)]
    assert page.measured(path) == page.question("connections", path) == page.every(path) == page.NOTHING
    assert run.main(command) == 1
    said = capsys.readouterr().out
    assert "projection must be one of" in said.replace("\n", " ")
    found = Store(path).records
    assert list(found) == [TINY]
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert found[TINY]["steps"] == 10

    monkeypatch.setitem(questions.QUESTIONS, "connections", lambda: [TINY])
    monkeypatch.setattr(run, "begin", pytest.fail)  # nothing is missing
    assert run.main(command) == 0
    assert TINY.name.split(",")[0] in capsys.readouterr().out
    assert "connections 1 of 1" in page.measured(path)
    assert len(page.question("connections", path).splitlines()) == 3
    assert f"{TINY.name}, lr {TINY.lr:g} | {TINY.seed} |" in page.every(path)


def test_what_there_is_no_question_of(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["speed"])
    assert "no question speed; there are connections, fair" in capsys.readouterr().err


def test_the_quick_one_leaves_the_results_alone() -> None:
    args = run.arguments(["--quick"])
    assert args.out != PATH
    assert len(questions.quick()) == 6
