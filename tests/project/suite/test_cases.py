"""What runs of dear tests: every value once, or so many cases."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from tests.cases import COMPILES, core, is_repeated
from tests.project.rules import ROOT


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_every_value_occurs_in_as_few_cases_as_the_longest_parameter_has(sizes: list[int]) -> None:
    cases: list[dict[str, int]] = [{}]
    for number, size in enumerate(sizes):
        cases = [{**case, f"p{number}": value} for case in cases for value in range(size)]
    kept = core(cases)
    assert {value for i in kept for value in cases[i].items()} == {value for case in cases for value in case.items()}
    assert len(kept) == max(sizes)


@given(cases=st.integers(1, 60), most=st.integers(1, 20))
def test_so_many_cases(cases: int, most: int) -> None:
    kept = core([{"p": i} for i in range(cases)], most)
    assert len(kept) == min(cases, most)
    assert kept <= set(range(cases))
    assert 0 in kept


def test_the_start_repeats_what_has_moved() -> None:
    known = {"f.py::t[moved-a]", "f.py::t[start-a]", "f.py::t[start-b]", "f.py::t[moved]@group", "f.py::t[start]@group"}
    assert {each for each in known if is_repeated(each, known)} == {"f.py::t[start-a]", "f.py::t[start]@group"}


def test_what_quick_leaves_out_is_there() -> None:
    assert [place for place in COMPILES if not (ROOT / place).exists()] == []
