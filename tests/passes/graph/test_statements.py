"""Places in the source: comments do not move them, statements that are alike are told apart."""

from __future__ import annotations

import linecache
import textwrap
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from torch import fx

from mhc_compile.passes.graph.statements import Forward, place

_numbers = count()


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Callable[[str], Callable[..., str]]]:
    """Write a file, and return what names the statements on lines of it."""

    def write(text: str) -> Callable[..., str]:
        path = tmp_path / f"source_{next(_numbers)}.py"
        path.write_text(textwrap.dedent(text))

        def at(*lines: int, forward: Forward | None = None) -> str:
            return place(node(str(path), *lines), forward)

        return at

    yield write
    linecache.clearcache()


def node(file: str, *lines: int, function: str = "forward") -> fx.Node:
    made = fx.Graph().placeholder("x")
    made.meta["stack_trace"] = "".join(f'  File "{file}", line {line}, in {function}\n    code\n' for line in lines)
    return made


PLAIN = """
    def forward(x, f):
        x = x + f(x)
        if x.ok:
            x = x + f(x)
        return x + f(x)
"""
COMMENTED = """
    # two lines
    # of comment
    def forward(x, f):  # one more

        x = x + f(
            x,  # the input
        )
        if x.ok:
            "nothing"
            x = (x + f(x))
        return x + f(x)
"""


def test_comments_blank_lines_and_line_breaks_do_not_move_a_statement(
    written: Callable[..., Callable[..., str]],
) -> None:
    plain, commented = written(PLAIN), written(COMMENTED)
    assert [plain(line) for line in (3, 5, 6)] == [commented(line) for line in (6, 11, 12)]
    assert commented(6) == commented(7) == commented(8)


def test_statements_that_are_alike_are_numbered(written: Callable[..., Callable[..., str]]) -> None:
    at = written(PLAIN)
    assert at(5) == f"{at(3)}.1"
    assert at(6) not in (at(3), at(5))
    assert at(3).startswith("forward:")


def test_the_head_of_a_compound_statement_is_not_its_body(written: Callable[..., Callable[..., str]]) -> None:
    at = written("""
        def forward(x, f):
            for g in f:
                x = x + g(x)
            for g in f:
                x = x + 2 * g(x)
            match x:
                case 1:
                    x = x + f(x)
                case _:
                    x = x + f(x)
            try:
                x = x + f(x)
            except ValueError:
                x = x + f(x)
            with f:
                x = x + f(x)
    """)
    assert at(5) == f"{at(3)}.1"  # heads that are alike
    inner = [at(line) for line in (9, 11, 13, 15, 17)]
    assert inner == [inner[0], *(f"{inner[0]}.{i}" for i in range(1, 5))]
    assert len({at(line) for line in range(3, 18) if line not in (8, 10, 12, 14)}) == 11


def test_a_function_inside_of_a_function_is_one_of_its_own(written: Callable[..., Callable[..., str]]) -> None:
    at = written("""
        def forward(x, f):
            def inner(x):
                return x + f(x)
            return x + f(x)
    """)
    assert at(4).startswith("inner:")
    assert at(4).partition(":")[2] == at(5).partition(":")[2]


def test_the_way_leads_from_the_forward_to_the_node(written: Callable[..., Callable[..., str]]) -> None:
    at = written("""
        def add(x, y):
            return x + y
        def forward(x, f):
            x = add(x, f(x))
            return add(x, f(x))
    """)
    assert at(5, 3) == f"{at(5)}>{at(3)}"
    assert at(5, 3) != at(6, 3)


def test_it_starts_at_the_forward_that_is_innermost(written: Callable[..., Callable[..., str]], tmp_path: Path) -> None:
    at = written(PLAIN)
    file = str(next(tmp_path.glob("source_*.py")))
    assert place(node(file, 6, 3), Forward(file, 2, 6)) == at(3)
    assert at(6, 3, forward=Forward("elsewhere.py", 1, 9)) == f"{at(6)}>{at(3)}"


def test_without_source_there_is_the_line() -> None:
    assert place(node("<string>", 12), None) == "forward:12"
    assert place(fx.Graph().placeholder("x"), None) == ""


def test_a_file_that_cannot_be_read_as_python(written: Callable[..., Callable[..., str]]) -> None:
    assert written("%%timeit\nx = x + f(x)\n")(2) == "forward:2"
