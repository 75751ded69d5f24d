"""Functions that Dynamo gives up: each is told, with the line that made it, where it adds anything."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.capture.frames import Break
from mhc_compile.capture.skipped import Skipped, Watch
from tests.nets.structures import tokens

pytestmark = pytest.mark.filterwarnings("ignore:mhc finds nothing")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x).tanh()


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            if float(x.sum()) > 1e9:  # broken
                break
        return x


class Adds(Loop):
    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block.f(x)  # type: ignore[operator]
            if float(x.sum()) > 1e9:  # broken
                break
        return x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnns = nn.ModuleList(nn.GRU(8, 8, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for rnn in self.rnns:
            x = x + rnn(x)[0]  # broken
        return x


def broken(kind: type[nn.Module]) -> str:
    """Where a class's forward breaks."""
    lines, first = inspect.getsourcelines(kind)
    (line,) = [first + i for i, text in enumerate(lines) if "# broken" in text]
    return f"{inspect.getsourcefile(kind)}:{line}"


@pytest.mark.parametrize("kind", [Adds, Recurrent])
def test_a_function_that_adds_has_a_row(kind: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), kind())
    report = mhc.explain(model, (tokens(),))
    told = [(each.reason, each.owner, each.source) for each in report.rejections]
    assert told == [("not-compiled", "1", broken(kind))]
    assert "forward (test_skipped.py:" in report.rejections[0].message
    assert any(broken(kind) in text for text in report.breaks)


def test_a_loop_over_layers_breaks_at_the_users_line() -> None:
    report = mhc.explain(Loop(), (tokens(),))
    assert [(cut.kind, cut.source, cut.carries) for cut in report.cuts] == [("region", broken(Loop), True)] * 2
    assert all("item" in cut.reason for cut in report.cuts)
    assert report.rejections == ()  # it adds nothing itself
    assert [text.rpartition("(")[2] for text in report.breaks] == [f"{broken(Loop)})"]


def test_records_are_read_once() -> None:
    first = Watch()
    torch.compile(Loop(), backend="eager")(tokens())
    assert [skip.function for skip in first.look()] == ["forward"]
    assert first.look() == first.skipped
    assert len(first.skipped) == 1
    assert Watch().look() == []


@pytest.mark.parametrize(
    ("body", "adds"),
    [
        ("x = x + y", True),
        ("x += f(x)", True),
        ("x = torch.add(x, y)", True),
        ("x = sum([x, y])", True),
        ("i = i + 1", False),
        ("i += 1", False),
        ('print("a" + name, f"{x}" + name)', False),
        ("return x", False),
    ],
)
def test_what_adds(body: str, adds: bool, tmp_path: pytest.TempPathFactory) -> None:
    file = tmp_path / "written.py"  # type: ignore[operator]
    file.write_text(f"def other(x):\n    return x + x\n\n@decorated\ndef forward(x, y):\n    {body}\n")
    assert Skipped("forward", str(file), 4, Break("")).adds() is adds
    assert Skipped("forward", str(file), 99, Break("")).adds()  # unknown
