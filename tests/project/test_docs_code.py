"""All Python in the documents runs, and prints what stands behind it.

Sybil finds the blocks. A `python` block runs in its document's namespace; a `text` block right behind one is what that
block printed. A block that cannot run here says so in its first line, and NOT_RUN counts these.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser

from tests.project.documents import documents
from tests.project.rules import ROOT

NOT_RUN = 4
LANGUAGES = {"", "python", "text", "sh"}
_NOT_RUN = re.compile(r"# not run here: \w+")
_ELSEWHERE = re.compile(r"(\w+\.py):\d+")  # a line of another library's, which moves with its version


class Blocks:
    """Runs the Python blocks of a document in order and compares what they print."""

    def __init__(self) -> None:
        self.printed = ""
        self.skipped = 0

    def run(self, example: Example) -> None:
        if _NOT_RUN.match(example.parsed):
            self.skipped += 1
            return
        source = "\n" * (example.line + example.parsed.line_offset) + example.parsed
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(source, example.path, "exec"), example.namespace)
        self.printed = out.getvalue()

    def compare(self, example: Example) -> None:
        shown, printed = (_ELSEWHERE.sub(r"\1:0", text).strip() for text in (example.parsed, self.printed))
        assert printed == shown, f"{example.path}:{example.line} shows something else than was printed:\n{printed}"
        self.printed = ""


def parsed(path: Path) -> tuple[Document, Blocks]:
    blocks = Blocks()
    python = CodeBlockParser(language="python", evaluator=blocks.run)
    text = CodeBlockParser(language="text", evaluator=blocks.compare)
    return Document.parse(str(path), python, text), blocks


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module that blocks seem to stand in."""
    made = types.ModuleType("documented")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


NEEDED = {"hugging-face.md": ("accelerate", "peft", "transformers")}  # packages of extras, where a page needs more
DEAR = {"deepseek-v4.md", "hugging-face.md", "serve.md"}  # of what they show much runs in other tests too
WITH_CODE = [
    pytest.param(path, id=path.relative_to(ROOT).as_posix(), marks=[pytest.mark.slow] if path.name in DEAR else [])
    for path in documents()
    if "```python" in path.read_text("utf-8")
]


@pytest.mark.parametrize("path", WITH_CODE)
def test_code_runs_and_prints_what_is_shown(
    path: Path, module: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NEEDED.get(path.name, ()):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    document, _ = parsed(path)
    document.namespace = vars(module)
    for example in document.examples():
        example.evaluate()


def test_what_cannot_run_is_marked_and_counted() -> None:
    found = [example for path in documents() for example in parsed(path)[0] if _NOT_RUN.match(example.parsed)]
    assert len(found) == NOT_RUN


def test_no_block_is_of_a_language_that_nobody_looks_at() -> None:
    found = {info for path in documents() for info in openings(path.read_text("utf-8"))}
    assert found <= LANGUAGES


def openings(text: str) -> Iterator[str]:
    """The words behind the fences that open blocks."""
    fences = re.findall(r"^```(.*)$", text, re.MULTILINE)
    assert len(fences) % 2 == 0
    assert not any(fences[1::2])
    yield from fences[::2]


def test_a_wrong_output_is_seen(tmp_path: Path, module: types.ModuleType) -> None:
    file = tmp_path / "wrong.md"
    file.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n", "utf-8")
    document, _ = parsed(file)
    document.namespace = vars(module)
    first, second = document.examples()
    first.evaluate()
    with pytest.raises(AssertionError, match=r"wrong.md:5 shows something else than was printed:\s+1"):
        second.evaluate()


def test_a_marked_block_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "marked.md"
    file.write_text("```python\n# not run here: needs a GPU\nraise ValueError\n```\n", "utf-8")
    document, blocks = parsed(file)
    for example in document.examples():
        example.evaluate()
    assert blocks.skipped == 1
