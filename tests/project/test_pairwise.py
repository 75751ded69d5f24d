from __future__ import annotations

import itertools
from typing import Any

import torch

from tests.pairwise import pairs, pairwise, sampled, short

AXES: dict[str, Any] = {
    "op": ["enter", "seam", "leave"],
    "n": [1, 2, 3, 4],
    "equal": [False, True],
    "tail": [None, 1, True],
}


def test_every_two_values_meet() -> None:
    found = pairs(None, **AXES)
    assert all(list(row) == sorted(AXES, key=lambda name: -len(AXES[name])) for row in found)
    for (one, first), (other, second) in itertools.combinations(AXES.items(), 2):
        met = [(row[one], row[other]) for row in found]
        for a, b in itertools.product(first, second):
            assert any(a is x and b is y for x, y in met), (one, a, other, b)
    assert len(found) < 20 < 3 * 4 * 2 * 3


def test_what_does_not_exist_is_left_out() -> None:
    found = pairs(lambda row: (row.get("op"), row.get("equal")) != ("leave", True), **AXES)
    assert not [row for row in found if row["op"] == "leave" and row["equal"]]
    assert {(row["op"], row["n"]) for row in found} == set(itertools.product(AXES["op"], AXES["n"]))


def test_cases_have_short_names() -> None:
    (mark,) = (pairwise(op=["enter"], n=[3], equal=[True], scale=[False], tokens=[(2, 0)], norm=["rms weight"]).mark,)
    assert mark.kwargs["ids"] == ["enter-n3-equal-2x0-rms_weight"]
    assert short("dtype", torch.bfloat16) == "bf16"
    assert short("tokens", ()) == "scalar"


def test_samples_are_always_the_same() -> None:
    assert sampled(5, **AXES).mark == sampled(5, **AXES).mark
    assert len(sampled(5, **AXES).mark.args[1]) == 5
