"""The plan as the model's state carries it along."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch

from mhc_compile.config import Config
from mhc_compile.errors import PlanMismatchError
from mhc_compile.model.plan_text import decode
from mhc_compile.model.sites import RootSites

PLAN: dict[str, Any] = {
    "version": 1,
    "function": Config(streams=3).function(),
    "sites": [{"name": "mlp", "region": 0, "k": 1, "length": 7, "predecessor": None, "channels": 5}],
    "details": [],
}


def test_extra_state_round_trip() -> None:
    held = RootSites(json.dumps(PLAN))
    state = held.get_extra_state()
    assert state.dtype == torch.uint8
    assert json.loads(decode(state)) == PLAN
    other = RootSites(json.dumps(PLAN | {"details": [1]}))
    other.load_state_dict(pickle.loads(pickle.dumps(held.state_dict())))
    assert other.sites_of_plan() == PLAN["sites"]


def test_details_may_differ() -> None:
    """A moved source line or another batch size is no other plan."""
    RootSites(json.dumps(PLAN)).set_extra_state(RootSites(json.dumps(PLAN | {"details": [1]})).get_extra_state())


@pytest.mark.parametrize(
    ("key", "value"),
    [("version", 2), ("function", Config(streams=4).function()), ("sites", [])],
    ids=["version", "function", "sites"],
)
def test_checkpoints_of_another_plan_are_refused(key: str, value: Any) -> None:
    other = RootSites(json.dumps(PLAN | {key: value})).get_extra_state()
    with pytest.raises(PlanMismatchError, match=rf"its {key} differ\)\..*mhc_compile\.restore\(model, state_dict\)"):
        RootSites(json.dumps(PLAN)).set_extra_state(other)


def test_a_checkpoint_from_before_fields_went_or_came_is_of_the_same_plan() -> None:
    gone = {"convention": "paper", "init": "home"}
    function = {name: value for name, value in PLAN["function"].items() if name != "readout"}
    for earlier in (function, function | gone, function | gone | {"readout": "mean"}):
        RootSites(json.dumps(PLAN)).set_extra_state(
            RootSites(json.dumps(PLAN | {"function": earlier})).get_extra_state()
        )
    before = RootSites(json.dumps(PLAN | {"function": PLAN["function"] | gone})).get_extra_state()
    RootSites(json.dumps(PLAN)).set_extra_state(before)
    other = RootSites(json.dumps(PLAN | {"function": PLAN["function"] | gone | {"init": "split"}})).get_extra_state()
    with pytest.raises(PlanMismatchError, match=r"made with init='split', .* knows 'home' only"):
        RootSites(json.dumps(PLAN)).set_extra_state(other)


@pytest.mark.parametrize("state", [None, {}, "plan", torch.ones(3)], ids=repr)
def test_a_state_that_is_no_plan_is_refused(state: Any) -> None:
    with pytest.raises(PlanMismatchError, match="not a plan of mhc_compile"):
        RootSites(json.dumps(PLAN)).set_extra_state(state)


def test_a_plan_with_any_text_survives() -> None:
    text = json.dumps(PLAN | {"details": ["层.α"]}, ensure_ascii=False)
    assert decode(RootSites(text).get_extra_state()) == text
