"""The command line: what it prints, what it returns, and what it says to a user's mistake."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mhc_compile import cli
from mhc_compile.cli import bench, factory, measure
from mhc_compile.errors import FactoryError

MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x):
        return x + self.mlp(self.norm(x))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = Block(), Block(), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.second(self.first(x)))

def make():
    return Net(), (torch.randn(8, 16),)

def with_keywords():
    model, (x,) = make()
    return model, (), {"x": x}

def only_model():
    return make()[0]

def wrong_parts():
    return "model", 3

def with_arguments(width, depth, *more, heads=2):
    return make()

number = 7
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "my_model.py"
    path.write_text(MODEL)
    return str(path)


def test_explain_prints_the_sites(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", f"{file}:make"]) == 0
    printed = capsys.readouterr().out
    assert "first.mlp" in printed
    assert "second.mlp" in printed
    assert "streams=4" in printed


@pytest.mark.parametrize(
    "call",
    [
        ["{file}:with_keywords", "--json", "--options", "streams=2", "connection=hc"],
        ["--options", "streams=2", "connection=hc", "{file}:with_keywords", "--json"],
        ["--options=streams=2", "--json", "--options", "connection=hc", "{file}:with_keywords"],
    ],
    ids=["behind", "in front", "one by one"],
)
def test_explain_as_json_with_options_and_keywords(
    call: list[str], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", *(word.format(file=file) for word in call)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [site["name"] for site in found["sites"]] == ["first.mlp", "second.mlp"]
    assert [region["sites"] for region in found["regions"]] == [2]
    assert found["parameters"] > 0
    assert found["graphs"] == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (["explain", "nowhere.py:make"], "no file 'nowhere.py'"),
        (["explain", "make"], "not FILE.py:FACTORY"),
        (["explain", "{file}:missing"], "no function missing()"),
        (["explain", "{file}:number"], "no function number()"),
        (["explain", "{file}:only_model"], "it returned Net"),
        (["explain", "{file}:wrong_parts"], "it returned (str, int)"),
        (["explain", "{file}:with_arguments"], "wants arguments (width, depth); give it defaults"),
        (["explain", "{file}:make", "--options", "streams"], "KEY=VALUE"),
        (["explain", "{file}:make", "--options", "stream=2"], "did you mean 'streams'"),
        (["bench", "{file}:make", "--options", "streams=0"], "streams must be an integer >= 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_mistake_is_one_line_and_exit_code_2(
    call: list[str], said: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([word.format(file=file) for word in call]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err


def test_a_user_files_own_error_keeps_its_traceback(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('mine')")
    with pytest.raises(RuntimeError, match="mine"):
        cli.main(["explain", f"{path}:make"])


def test_a_files_neighbours_can_be_imported(file: str, tmp_path: Path) -> None:
    path = tmp_path / "other.py"
    path.write_text("from my_model import make as made\n\ndef make():\n    return made()\n")
    model, args, kwargs = factory.load(f"{path}:make")
    assert [name for name, _ in model.named_children()] == ["first", "second", "head"]
    assert args[0].shape == (8, 16)
    assert kwargs == {}


@pytest.mark.slow
def test_the_module_runs_from_a_checkout(file: str) -> None:
    command = [sys.executable, "-m", "mhc_compile", "explain"]
    root = Path(__file__).parents[3]
    done = subprocess.run([*command, f"{file}:make"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "first.mlp" in done.stdout


@pytest.mark.slow
def test_who_stops_reading_sees_no_error(file: str) -> None:
    command = [sys.executable, "-m", "mhc_compile", "explain", "--json", f"{file}:make"]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "BrokenPipeError" not in process.stderr.read()
    assert process.returncode == 0


def test_options_are_literals_or_words() -> None:
    pairs = ["streams=2", "alpha=auto", "eps=1e-5", "exclude=('a.*', 'b')", "include=layers.*"]
    assert factory.parse_options(pairs) == {
        "streams": 2,
        "alpha": "auto",
        "eps": 1e-5,
        "exclude": ("a.*", "b"),
        "include": "layers.*",
    }


@pytest.mark.core(1)
@pytest.mark.usefixtures("by_inductor")
def test_bench_measures_plain_and_mhc(
    file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "cold_caches", lambda reset=True: contextlib.nullcontext())  # to be quick
    call = ["bench", f"{file}:make", "--no-hc", "--rounds", "2", "--json", "--options", "streams=2", "sinkhorn_iters=1"]
    assert cli.main(call) == 0
    found = json.loads(capsys.readouterr().out)
    plain, mhc = found["rows"]
    assert (plain["name"], mhc["name"]) == ("plain", "mhc")
    assert plain["step_ratio"] == 1.0
    assert mhc["step_ratio"] > 0
    assert plain["upgrade_seconds"] == 0 < mhc["upgrade_seconds"]
    assert mhc["compile_seconds"] > 0
    assert mhc["parameters"] > plain["parameters"]
    assert mhc["saved_bytes"] > plain["saved_bytes"] > 0
    assert found["environment"]["versions"]["torch"] == torch.__version__


def test_bench_table_compares_with_the_first_row(capsys: pytest.CaptureFixture[str]) -> None:
    rich = pytest.importorskip("rich.console")
    plain = bench.Row("plain", 0.0, 4.0, 0.1, 1.0, (0.9, 1.1), 1.0, 1000, 50)
    mhc = bench.Row("mhc", 0.5, 6.0, 0.12, 1.2, (1.1, 1.3), 1.15, 3000, 70)
    rich.Console(width=120).print(bench.table([plain, mhc], rounds=5))
    printed = capsys.readouterr().out
    for cell in ("1.50x", "1.200x", "3.00x", "+20", "1.100-1.300", "1.150x"):
        assert cell in printed


def test_scalar_needs_something_to_differentiate() -> None:
    with pytest.raises(FactoryError, match="no tensor to differentiate"):
        bench.scalar({"ids": torch.ones(3, dtype=torch.long)})


def test_scalar_sees_every_tensor_of_the_output() -> None:
    x, y = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    assert bench.scalar({"a": x * 2, "b": [y * 3]}).item() == 4 + 9
