"""Sources of Dynamo's, in every spelling that frames have shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from mhc_compile.capture.sources import below_root, look_up, plainly

SECOND = nn.Linear(2, 2)
MODEL = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2), SECOND])})

SPELLINGS = [
    "L['self'].layers.1",
    "L['self']._modules['layers']._modules['1']",
    "getattr(getattr(L['self'], 'layers'), '1')",
    "getattr(L['self']._modules['layers'], '1')",
]


@pytest.mark.parametrize("source", SPELLINGS)
def test_every_spelling_is_one(source: str) -> None:
    assert plainly(source) == SPELLINGS[0]
    assert below_root(source) == "layers.1"
    assert look_up(source, {"self": MODEL}, {}) is SECOND


def test_a_parameter_is_named_by_its_path() -> None:
    assert below_root("L['self']._modules['norm']._parameters['weight']") == "norm.weight"
    assert below_root("L['x']") == ""


FOUND: list[tuple[str, Any]] = [
    ("G['trainer'].model", MODEL),
    ("L['held']['model']", MODEL),
    ("L['listed'][0].layers.1", SECOND),
    ("L['gone'].model", None),
    ("L['held']['other']", None),
    ("L['listed'][3]", None),
    ("type(L['self']).model", None),
]


@pytest.mark.parametrize(("source", "found"), FOUND, ids=[source for source, _ in FOUND])
def test_what_a_source_names_in_a_frame(source: str, found: Any) -> None:
    local = {"held": {"model": MODEL}, "listed": [MODEL]}
    assert look_up(source, local, {"trainer": SimpleNamespace(model=MODEL)}) is found
