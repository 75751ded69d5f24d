"""What logs say, in whatever state they were left."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mhc_compile.api.monitor.run_log import FILE
from mhc_compile.cli.report import runs
from mhc_compile.errors import RunLogError
from tests.mhc_compile.cli.report.logs import look, write


def test_a_run_has_each_step_once_in_order(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", [look(3.0), look(2.0)])
    write(folder, [{"loss": 2.5}, {"lr": [1.0]}], model=None)  # went on, from the first step again
    (run,) = runs.load([folder])
    assert [record["step"] for record in run.steps] == [0, 10]
    assert [record["loss"] for record in run.steps] == [2.5, 2.0]
    assert len(run.looks) == 2
    assert run.last["name"] == ["layers.0.attn", "layers.1.attn"]
    assert (run.name, run.notes, run.warnings) == ("a", (), ())


def test_what_is_odd_becomes_a_note(tmp_path: Path) -> None:
    steps = [look(), look(math.nan), {"loss": math.inf}, {"error": "no memory"}]
    folder = write(tmp_path, steps)
    with (folder / FILE).open("a") as log:
        log.write('{"kind":"warning","step":3,"text":"dead"}\n{"kind":"st')
    (run,) = runs.load([folder])
    assert run.notes == (
        "1 line of the log cannot be read, as after a crash; left out",
        "the loss is not a finite number at steps 10, 20: a gap in the plot",
        "the monitor could not look at step 30: no memory",
    )
    assert run.warnings == ("dead",)


@pytest.mark.parametrize(
    ("steps", "note"),
    [([], "no step was written"), ([{"loss": 1.0}], "no gains were measured")],
    ids=["empty", "blind"],
)
def test_what_is_missing_becomes_a_note(steps: list[dict[str, float]], note: str, tmp_path: Path) -> None:
    (run,) = runs.load([write(tmp_path, steps)])
    assert run.notes[0].startswith(note)
    assert (run.looks, run.last) == ((), {})


def test_runs_are_named_by_as_much_as_tells_them_apart(tmp_path: Path) -> None:
    folders = [write(tmp_path / name / "run", []) for name in ("a", "b")]
    assert [run.name for run in runs.load(folders)] == ["a/run", "b/run"]
    assert [run.name for run in runs.load([folders[0], folders[0]])] == ["run (1)", "run (2)"]


def test_a_folder_that_is_no_run_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(RunLogError, match="holds no log of a run"):
        runs.load([tmp_path])


def test_long_runs_are_thinned_evenly_and_keep_their_ends() -> None:
    records = [{"step": step} for step in range(1000)]
    kept = [record["step"] for record in runs.thinned(records, 5)]
    assert kept == [0, 250, 500, 749, 999]
    assert runs.thinned(records[:3], 5) == records[:3]


def test_the_worst_of_what_is_no_number_is_none() -> None:
    assert runs.worst([1.0, 3.0, 2.0]) == 3.0
    assert runs.worst([1.0, math.inf]) is None
    assert runs.worst([]) is None
