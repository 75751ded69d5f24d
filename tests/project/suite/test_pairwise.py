from __future__ import annotations

import itertools
from collections.abc import Mapping
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
    for (one, first), (other, second) in itertools.combinations(AXES.items(), 2):
        met = [(row[one], row[other]) for row in found]
        for a, b in itertools.product(first, second):
            assert any(a is x and b is y for x, y in met), (one, a, other, b)
    assert 4 * 3 <= len(found) < 20 < 3 * 4 * 2 * 3


def test_what_does_not_exist_is_left_out_and_nothing_else() -> None:
    def exists(row: Mapping[str, Any]) -> bool:
        return row["op"] != "leave" or (not row["equal"] and row["n"] == 1)

    found = pairs(exists, **AXES)
    assert all(map(exists, found))
    rows = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
    for one, other in itertools.combinations(AXES, 2):
        met, there = ({(row[one], row[other]) for row in rows} for rows in (found, filter(exists, rows)))
        assert met == there


def test_cases_have_short_names() -> None:
    (mark,) = (pairwise(op=["enter"], n=[3], equal=[True], scale=[False], tokens=[(2, 0)], norm=["rms weight"]).mark,)
    assert mark.kwargs["ids"] == ["enter-n3-equal-2x0-rms_weight"]
    assert short("dtype", torch.bfloat16) == "bf16"
    assert short("tokens", ()) == "scalar"


def test_samples_are_always_the_same() -> None:
    assert sampled(5, **AXES).mark == sampled(5, **AXES).mark
    assert len(sampled(5, **AXES).mark.args[1]) == 5
