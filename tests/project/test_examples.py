"""Every example runs as it stands and prints what its README shows; each fails where a mistake is planted in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
each_example = pytest.mark.parametrize("name", NAMES)

# name: (a piece of its text, the mistake in its place, what the example then says)
MISTAKES = {
    "blockwise": (
        "data.chunk(RANKS, dim=1)[rank]",
        "data.chunk(RANKS, dim=1)[0]",
        "two processes do not train what one process trains",
    ),
    "export": (
        "program = torch.export.export(graph",
        "next(graph.parameters()).zero_(); program = torch.export.export(graph",
        "saved and loaded, the exported program is not the model",
    ),
    "pipeline": (
        "mhc.connect_stages(parts, STAGES)",
        "mhc.connect_stages(parts, STAGES); next(parts[rank].parameters()).data.mul_(2)",
        "four stages do not train what one process trains",
    ),
    "upgrade": (
        "mhc.restore(restored, torch.load(file))",
        "mhc.restore(restored, torch.load(file)); restored.lm_head.weight.data.mul_(1.5)",
        "the restored model computes something else",
    ),
    "vision": ("optimizer.step()", "pass", "the network did not learn"),
}


def run(script: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(script)], env=environment, cwd=script.parent, capture_output=True, text=True, check=False
    )


def promised(name: str) -> list[str]:
    """The lines that the README shows for an example."""
    readme = (FOLDER / "README.md").read_text("utf-8")
    found = re.search(rf"`python examples/{name}\.py`.*?```\n(.*?)```", readme, re.DOTALL)
    assert found, f"the README does not show what {name}.py prints"
    return found[1].splitlines()


def missing(lines: list[str], printed: str) -> list[str]:
    """The lines that were not printed; numbers may differ, and so may what stands in place of dots at the end."""
    texts = [_without_numbers(line) for line in printed.splitlines()]
    return [line for line in lines if not any(_fits(_without_numbers(line), text) for text in texts)]


def _fits(line: str, text: str) -> bool:
    return text.startswith(line.removesuffix("...").rstrip()) if line.endswith("...") else text == line


def _without_numbers(line: str) -> str:
    return re.sub(r"\d+(\.\d+)?(e[-+]\d+)?", "#", line)


@pytest.mark.slow  # half a minute each: they compile as they stand
@each_example
def test_example_prints_what_the_readme_shows(name: str) -> None:
    done = run(FOLDER / f"{name}.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not missing(promised(name), done.stdout), done.stdout


@pytest.mark.slow
@each_example
def test_example_fails_with_a_mistake_in_it(name: str, tmp_path: Path) -> None:
    text = (FOLDER / f"{name}.py").read_text("utf-8")
    right, wrong, complaint = MISTAKES[name]
    uncompiled = text.replace('.compile(backend="mhc")', '.compile(backend="mhc", options={"compiler": "eager"})')
    assert uncompiled != text
    assert uncompiled.count(right) == 1
    (tmp_path / f"{name}.py").write_text(uncompiled.replace(right, wrong), "utf-8")
    done = run(tmp_path / f"{name}.py")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"failed: {complaint}" in done.stderr


@pytest.mark.slow
def test_torchtitan() -> None:
    """In an environment that has it."""
    pytest.importorskip("torchtitan")
    done = run(FOLDER / "torchtitan" / "train.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not missing(promised("torchtitan/train"), done.stdout), done.stdout


def test_a_line_that_is_not_printed_is_missed() -> None:
    printed = "loss 5.56 -> 2.5 in 60 steps\nit writes 'abc def'\n"
    assert missing(["loss 1.0 -> 7 in 5 steps", "it writes 'abc ..."], printed) == []
    assert missing(["loss 1.0 in 5 steps", "it writes 'abd ...", "steps"], printed) == [
        "loss 1.0 in 5 steps",
        "it writes 'abd ...",
        "steps",
    ]
