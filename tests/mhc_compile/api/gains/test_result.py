"""What gains returns: frozen, plain JSON, and a table for terminals and notebooks."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from mhc_compile.api.gains.result import Gains
from mhc_compile.api.gains.site import Amax
from tests.mhc_compile.api.gains.made_up import site


def test_the_summary_is_of_the_worst_and_by_region() -> None:
    found = Gains(2, "hc", "sinkhorn", (site(gain=7.0), site(gain=3.0), site(region=1, spread=1e-8)))
    assert found.composite == Amax(7.0, 14.0)
    assert found.spread == {0: 0.1, 1: 1e-8}
    assert found.dead == (1,)
    assert found.sites[0].dominance == 0.75


def test_what_is_no_number_does_not_look_small() -> None:
    found = Gains(2, "hc", "sinkhorn", (site(gain=1.0), site(gain=math.nan), site(gain=3.0)))
    assert math.isnan(found.composite.mean)


def test_it_is_frozen_and_plain_json() -> None:
    found = Gains(2, "hc", "sinkhorn", (site(),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.streams = 3  # type: ignore[misc]  # that is the test
    told = found.to_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["sites"][0]["composite"]["matrix"] == [[1.0, 0.0], [0.0, 1.0]]
    assert told["sites"][0]["dominance"] == 0.75
    assert told["composite"] == {"mean": 1.0, "max": 2.0}
