"""Each kind of trouble rings once, and says what to do about it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

import mhc_compile as mhc
from mhc_compile.api.gains.result import Gains
from mhc_compile.api.gains.site import Amax
from mhc_compile.api.monitor.alarms import PATIENCE, Alarms
from tests.nets.small import Net, inputs, perturb, upgraded

pytestmark = pytest.mark.xdist_group("alarms")  # what is made once is made by one worker


@pytest.fixture(scope="module")
def start() -> tuple[nn.Module, Gains]:
    model = upgraded(Net, 2)
    return model, mhc.gains(model, (inputs(),))


def grown(gains: Gains, gain: float, connection: str = "mhc") -> Gains:
    """The same with streams apart, and one composite gain of this size."""
    sites = [dataclasses.replace(site, spread=0.1) for site in gains.sites]
    composite = dataclasses.replace(sites[1].composite, backward=Amax(gain, gain))
    sites[1] = dataclasses.replace(sites[1], composite=composite)
    return dataclasses.replace(gains, sites=tuple(sites), connection=connection)


def rung(alarms: Alarms, step: int, gains: Gains, optimizer: torch.optim.Optimizer | None = None) -> list[str]:
    return [text for _, text in alarms.heard(step, gains, optimizer)]


def test_equal_streams_are_right_at_the_start_and_dead_later(start: tuple[nn.Module, Gains]) -> None:
    alarms = Alarms(start[0], 10)
    assert not rung(alarms, 0, start[1])
    assert not rung(alarms, PATIENCE - 1, start[1])
    (text,) = rung(alarms, PATIENCE, start[1])
    assert "in region 0 all 4 streams are the same" in text
    assert "have not moved at all" in text
    assert not rung(alarms, 2 * PATIENCE, start[1])


def test_the_remedy_is_that_of_the_cause(start: tuple[nn.Module, Gains]) -> None:
    own = torch.optim.SGD([p for n, p in start[0].named_parameters() if "mhc" not in n], lr=0.1)

    def remedy(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> str:
        alarms = Alarms(model, 10)
        assert not rung(alarms, 0, start[1], optimizer)
        return rung(alarms, PATIENCE, start[1], optimizer)[0]

    assert "The optimizer holds no mHC parameter (such as" in remedy(start[0], own)
    assert "mhc_compile.param_groups(model, lr, weight_decay)" in remedy(start[0], own)
    other = upgraded(Net, 2)
    perturb(other, 1e-7)
    assert "or that of phi alone (phi_lr_scale=...)" in remedy(other, None)
    for _, parameter in mhc.named_parameters(other):
        parameter.requires_grad_(False)
    assert "All mHC parameters are frozen" in remedy(other, None)


@pytest.mark.parametrize("gain", [11.0, math.nan, math.inf], ids=str)
def test_gains_over_the_bound_run_away(start: tuple[nn.Module, Gains], gain: float) -> None:
    alarms = Alarms(start[0], 10)
    assert not rung(alarms, 0, grown(start[1], 9.9))
    (text,) = rung(alarms, 1, grown(start[1], gain))
    assert "from site 'blocks.0.mlp' to the end of its region" in text
    assert "sinkhorn_iters=50" in text
    assert not rung(alarms, 2, grown(start[1], gain))


def test_hc_is_told_of_the_constraint(start: tuple[nn.Module, Gains]) -> None:
    (text,) = rung(Alarms(start[0], 10), 1, grown(start[1], 3000.0, "hc"))
    assert "connection='mhc' bounds every gain" in text
    assert "gradients by 3e+03, over the bound of 10" in text
