"""Every parametrised case has an id that says what it is: no counted value, no repr of an object, no screen of text.

The rule sees the tests that are collected together with this file: all of them, where the whole suite runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import pytest

LONGEST = 100
UNTOLD = ("lambda", "<function", "<class", " object at 0x")


def check_id(name: str, arguments: Mapping[str, object]) -> Iterator[str]:
    """What is wrong with the id of a case with these arguments; pytest counts those that it has no word for."""
    if len(name) > LONGEST:
        yield f"{len(name)} characters, {LONGEST} are allowed"
    yield from (f"holds `{text}`" for text in UNTOLD if text in name)
    for argument, value in arguments.items():
        if isinstance(value, (int, float, str)):
            continue  # `n2` is n = 2
        counted = re.search(rf"(?:^|-)({re.escape(argument)}\d+)(?:-|$)", name)
        if counted:
            yield f"`{counted[1]}` is a number, not a name"


def test_every_case_has_an_id(collected: list[pytest.Item]) -> None:
    found = []
    for item in collected:
        case = getattr(item, "callspec", None)
        if case is not None:
            found += [f"{item.nodeid}: {text}" for text in check_id(case.id, case.params)]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param("a-" + "x" * LONGEST, {"way": print, "text": ""}, id="long"),
        pytest.param("<lambda>0", {"step": print}, id="anonymous"),
        pytest.param("<function f at 0x7f>", {"step": print}, id="of a function"),
        pytest.param("<a.B object at 0x7f>-3", {"step": print, "n": 3}, id="repr"),
        pytest.param("mhc-between7", {"kind": "mhc", "between": print}, id="counted"),
        pytest.param("lifts0-between", {"lifts": (), "kind": print}, id="counted first"),
    ],
)
def test_rule_bites(name: str, arguments: dict[str, object]) -> None:
    assert len(list(check_id(name, arguments))) == 1


@pytest.mark.parametrize("name", ["t5-fp32", "x + mlp(norm(x))", "gpt2", "n2"])
def test_rule_lets_good_ids_pass(name: str) -> None:
    assert list(check_id(name, {"model": print, "n": 2})) == []
