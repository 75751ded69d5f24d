from __future__ import annotations

import ast

import pytest

from mhc_compile.codegen.text import each, fill, lines, wrap


def test_words_and_blocks_are_filled() -> None:
    made = fill("def f($args):\n    $body\n    return $out\n", args="x, y", body="a = x\n\nb = y\n", out="a")
    assert made == "def f(x, y):\n    a = x\n\n    b = y\n    return a\n"


def test_an_empty_block_takes_its_line_away() -> None:
    assert fill("if x:\n    $body\n    pass\n", body="\n") == "if x:\n    pass\n"


def test_a_part_that_is_missing_is_an_error() -> None:
    with pytest.raises(KeyError, match="body"):
        fill("$body\n")


def test_lines_are_joined_and_repeated() -> None:
    assert lines(["a", "", "b"]) == "a\nb"
    assert each(2, "x{i} = {i}") == "x0 = 0\nx1 = 1"


@pytest.mark.parametrize(
    "line",
    [
        f"def f({', '.join(f'argument{i}' for i in range(20))}):",
        f"    y = g[(a, b)](x, {', '.join(f'argument{i}' for i in range(20))})",
        f"    tl.store(p + q, f({', '.join('abcdefghijkl')}) * (1 + {' + '.join('mnopqrstuvwxyz' * 3)}), inside)",
    ],
    ids=["definition", "launch", "nested"],
)
def test_long_lines_are_broken_and_mean_the_same(line: str) -> None:
    made = wrap(line)
    assert max(map(len, made.split("\n"))) <= 120
    text, broken = (f"{code.strip()}\n" + "    pass" * code.strip().startswith("def") for code in (line, made))
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(broken))


@pytest.mark.parametrize(
    "line",
    ["x" * 130, f"# {'(word) ' * 30})", f"a = {' + '.join('abcdefgh' * 10)}", "f(x)"],
    ids=["word", "comment", "sum", "short"],
)
def test_other_lines_stay(line: str) -> None:
    assert wrap(line) == line
