"""bench/kernels without a GPU: tiny sizes on Triton's interpreter, in processes of their own."""

from __future__ import annotations

import itertools
import json
import operator
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.kernels import budgets, report, tune, wheels
from bench.kernels.correctness import checks as correctness
from bench.kernels.correctness.errors import Errors
from bench.kernels.peers import probe
from bench.kernels.support import cases
from bench.kernels.support.cases import DRY, REAL, Case, Sizes
from bench.kernels.support.context import Context
from bench.kernels.support.deadline import Deadline
from bench.kernels.support.reasons import reason
from bench.kernels.support.work import each
from bench.kernels.timing.clocks import HostClock, Sample, interleave
from bench.kernels.timing.sites import Shape
from mhc_compile.codegen import Spec, generate
from mhc_compile.codegen.triton.generate import bytes_per_token

pytestmark = pytest.mark.xdist_group("bench kernels")  # what is made once is made by one worker
ROOT = Path(__file__).resolve().parents[2]
SEAM = Case(Spec("seam", 2, 24, norm="rms", weight=True), 3)
LEAVE = Case(Spec("leave", 2, 24), 3)

# What a file's functions return, spoiled: appended to its text.
SPOILED = """

import functools
import itertools

_call = itertools.count()


def _spoiled(function):
    @functools.wraps(function)
    def run(*args, **kwargs):
        made = function(*args, **kwargs)
        {what}
        return made
    return run


{direction} = _spoiled({direction})
"""
WRONG: dict[str, Callable[[str], str]] = {
    "a coefficient's factor": lambda text: text.replace("2 * tl.sigmoid(", "1.99 * tl.sigmoid(", 1),
    "one stream": lambda text: text + SPOILED.format(direction="forward", what="made[0][:, 1] *= 1.02"),
    "a gradient left out": lambda text: text + SPOILED.format(direction="backward", what="made[4].zero_()"),
    "unwritten": lambda text: text + SPOILED.format(
        direction="backward", what="made[1] = torch.empty_like(made[1])"
    ),
    "an exception": lambda text: "raise ValueError('planted')",
    "not the same twice": lambda text: text + SPOILED.format(
        direction="forward", what="made[2].view(-1)[0] += 1e-6 * next(_call)"
    ),
}  # fmt: skip
COMPLAINTS = {
    "a coefficient's factor": "post_out: relative error",
    "one stream": "new: relative error",
    "a gradient left out": "dphi: relative error 1.0e+00",
    "unwritten": "df: 72 entries not written",
    "an exception": "ValueError: planted",
    "not the same twice": "two runs differ",
}


def context(jobs: int = 1, seconds: float = 120.0) -> Context:
    return Context("cpu", DRY, HostClock(), 1e9, 2, jobs, Deadline(seconds), dry=True)


@pytest.fixture(scope="module")
def interpreted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # for processes that start from here
        yield


@pytest.fixture(scope="module")
def checks(interpreted: None) -> dict[str, dict[str, Any]]:
    """Right and wrong kernels, checked side by side."""
    text = generate(SEAM.spec)
    wrong = {name: spoil(text) for name, spoil in WRONG.items()}
    assert all(other != text for other in wrong.values())
    items = [(SEAM, "cpu", None), (LEAVE, "cpu", None), *((SEAM, "cpu", other) for other in wrong.values())]
    names: dict[str | None, str] = {None: "right"} | {other: name for name, other in wrong.items()}
    rows = list(each(_labelled, [(names[item[2]], item) for item in items], context(jobs=2)))
    return {f"{row['op']} {label}": row for label, row in rows}


def _labelled(item: tuple[str, Any]) -> tuple[str, dict[str, Any]]:
    return item[0], correctness.checked(item[1])


@pytest.mark.slow
@pytest.mark.parametrize("op", ["seam", "leave"])
def test_right_kernels_are_found_right(checks: dict[str, dict[str, Any]], op: str) -> None:
    row = checks[f"{op} right"]
    assert (row["verdict"], row["why"]) == ("right", "")
    assert row["identical"]
    gradients = {"dx", "df", "dpost", "dres"} | ({"dphi", "dalpha", "dbias", "dweight"} if op == "seam" else set())
    assert gradients <= set(row["tensors"])
    assert all(error["missing"] == 0 and error["relative"] < 3e-3 for error in row["tensors"].values())
    line = correctness.line(row)
    assert len(line) == len(correctness.HEADS)
    assert line[:2] == (row["case"], "right")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_kernels_are_caught(checks: dict[str, dict[str, Any]], name: str) -> None:
    row = checks[f"seam {name}"]
    assert row["verdict"] == "wrong"
    assert COMPLAINTS[name] in row["why"]
    assert len(correctness.line(row)) == len(correctness.HEADS)


@pytest.mark.slow
def test_work_ends_when_time_is_over() -> None:
    assert sorted(each(operator.neg, [1, 2, 3], context(jobs=2))) == [-3, -2, -1]
    assert list(each(operator.neg, [1, 2, 3], context(jobs=2, seconds=0.0))) == []


def test_errors_count_steps_and_units_of_the_row() -> None:
    expected = torch.tensor([[1.0, -0.5], [4.0, 1.0]], dtype=torch.float64)
    actual = expected.bfloat16()
    actual[0, 1] -= 2 * 2**-8  # two steps of a number below 1; one of the row's largest
    errors = Errors(torch.bfloat16)
    errors.add(actual[:1], expected[:1])
    errors.add(actual[1:], expected[1:])
    found = errors.summary()
    assert found["beyond_one_ulp"] == 0.25
    assert found["row_ulps"] == 1.0
    assert found["relative"] == pytest.approx(2**-7 / (18.25) ** 0.5)
    assert found["missing"] == 0
    errors.add(torch.tensor([[torch.nan]]).bfloat16(), torch.ones(1, 1).double())
    assert errors.missing == 1
    assert not errors.relative <= 1.0


class _Ticks:
    """A clock that notes whom it timed: the n-th call takes n seconds."""

    def __init__(self) -> None:
        self.counter = itertools.count()

    def sample(self, step: Callable[[], object], ahead: float) -> Sample:
        step()
        return Sample(float(next(self.counter)), 0.0)


@pytest.mark.parametrize("turn", [True, False])
def test_rounds_interleave_and_a_failing_step_is_out(turn: bool) -> None:
    called: list[tuple[str, int]] = []

    def broken(number: int) -> None:
        raise RuntimeError("planted")

    steps = {"a": lambda i: called.append(("a", i)), "bad": broken, "b": lambda i: called.append(("b", i))}
    timed = interleave(steps, _Ticks(), sets=2, rounds=3, warmup=1, turn=turn)
    assert timed["bad"].why == "RuntimeError: planted"
    last = [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 0), ("b", 0)]
    straight = [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 0), ("b", 0)]
    assert called[-6:] == (last if turn else straight)
    assert {("a", 1), ("b", 1)} <= set(called[:4])  # every set is warm
    assert timed["a"].seconds > 0
    assert not timed["a"].why


def _swept(candidates: list[tuple[Any, str]]) -> dict[str, Any]:
    return tune.swept(LEAVE.spec, candidates, context())


@pytest.mark.slow
def test_the_sweep_keeps_what_is_right_and_fastest(interpreted: None) -> None:
    own = {name: {"BT": 4, "BC": 32, "num_warps": 4} for name in ("leave", "leave_backward")}
    broken = {**own, "leave": {"BT": 3, "BC": 32, "num_warps": 4}}  # no power of two
    (row,) = each(_swept, [[(broken, ""), (own, "not compiled in time"), (own, "")]], context(jobs=2))
    assert [bool(one["why"]) for one in row["tried"]] == [False, True, True, False]
    good = [one for one in row["tried"] if not one["why"]]
    for direction, best in row["best"].items():
        fastest, first = min(one[direction] for one in good), good[0][direction]
        assert best["seconds"] == (fastest if fastest < tune.NOISE * first else first) > 0
    assert [line[:2] for line in tune.lines(row)] == [("leave_n2_c24_bf16", d) for d in ("forward", "backward")]


@pytest.mark.parametrize("n", [2, 4, 8])
def test_our_budget_is_that_of_the_generator(n: int) -> None:
    least, most = bytes_per_token(Spec("seam", n, 1000))
    for design, bytes_ in zip(budgets.DESIGNS, (least, most), strict=False):
        assert design.at(n) == tuple(b // 1000 for b in bytes_)


def test_budgets_of_others_stand_beside_ours() -> None:
    lines = {line[0]: line for line in budgets.lines()}
    assert lines["TileKernels"][3:6] == ("36C + 78C", "114C", "2.28x")
    assert lines["Liger-Kernel"][3:6] == ("76C + 222C", "298C", "5.96x")
    assert all(len(line) == len(budgets.HEADS) for line in lines.values())


def test_sizes_cover_every_op_and_dtype() -> None:
    found = REAL.correctness()
    assert len({case.name for case in found}) == len(found)
    assert {case.spec.op for case in found} == {"enter", "seam", "leave", "coefficients"}
    assert {case.spec.dtype for case in found} == {"bf16", "fp16", "fp32"}
    assert {(c.spec.n, c.spec.channels) for c in found} >= {(n, c) for n in (2, 4, 8) for c in (2560, 4096, 7168)}
    assert Sizes(4, (8,), (2,)).shapes() == [(2, 8)]
    assert [spec.op for spec in cases.ops(2, 8)] == ["seam", "enter", "leave", "coefficients"]


def test_a_library_that_crashes_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(2, 2, 8)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert probe.failing(["liger-kernel"], [shape], "cpu", 10.0)["liger-kernel"][shape].startswith("its process ended")


def test_reasons_keep_both_ends() -> None:
    text = reason(ValueError("first\n" + "x" * 1000 + "last"))
    assert text.startswith("ValueError: first x")
    assert text.endswith("last")
    assert len(text) < 400


def test_wheels_are_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "BIG", 2**12)
    wheel, noise = tmp_path / "big-1-py3-none-any.whl", os.urandom(2**12).hex() * 3
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("big/data.txt", noise)
        file.writestr("big-1.data/data/bin/z3", "x")
    before = wheel.stat().st_size
    wheels.main([str(tmp_path)])
    assert wheel.stat().st_size < before / 2
    with zipfile.ZipFile(wheel) as file:
        assert file.namelist() == ["big/data.txt"]
        assert file.read("big/data.txt").decode() == noise
    assert "in all" in capsys.readouterr().out


def test_notes_are_dated_lines(tmp_path: Path) -> None:
    report.note(tmp_path, "cpu", "first")
    lines = report.note(tmp_path, "cpu", "second").read_text("utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert [line.split(", ")[1] for line in lines[-2:]] == ["cpu: first", "cpu: second"]


@pytest.mark.slow
def test_the_dry_run_leaves_everything(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        [
            "bash",
            "bench/gpu.sh",
            "--dry-run",
            "--steps",
            "tests,time,peers",
            "--rounds",
            "1",
            "--folder",
            str(tmp_path / "results"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "OUT": str(out), "TORCHDYNAMO_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert written == ["NOTES.md", "kernels-cpu.json", "kernels-cpu.png"]
    assert sorted(path.name for path in out.iterdir()) == written
    payload = json.loads((out / "kernels-cpu.json").read_text("utf-8"))
    assert payload["environment"]["versions"]["torch"] == torch.__version__
    ops = payload["rows"]["time"]["rows"]["ops"]
    assert {(row["op"], row["direction"]) for row in ops} == set(
        itertools.product(("seam", "enter", "leave", "coefficients"), ("forward", "backward"))
    )
    seam = ops[0]
    assert set(seam["kernels"]) == {"project", "read"}
    assert seam["bytes"]["least"] == DRY.tokens * bytes_per_token(cases.ops(2, 24)[0])[0][0]
    assert seam["share"] == pytest.approx(seam["bytes"]["least"] / seam["seconds"] / payload["rows"]["time"]["ceiling"])
    sites = {row["contender"]: row for row in payload["rows"]["peers"]["rows"]}
    assert all(sites[name]["both"]["seconds"] > 0 for name in ("mhc_compile", "torch.compile", "eager ops"))
    assert all(sites[name]["why"] for name in ("liger-kernel", "tile-kernels", "megatron-core", "hyper-connections"))
    for word in ("seam_n2", "enter_n2", "leave_n2", "coefficients_n2", "not installed", "TileKernels"):
        assert word in done.stdout
