"""bench/stability/training: a run of some steps, from the same start, and what is noted of it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from bench.stability import training
from bench.stability.trial import Trial
from mhc_compile.ops import projections

TINY = Trial(lr=1e-2, layers=2, hidden=32, batch=2, length=16, steps=12, warmup=2)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run registers projections, for its process; here others follow."""
    monkeypatch.setattr(projections, "PROJECTIONS", dict(projections.PROJECTIONS))


def trained(**changes: Any) -> training.Record:
    """Without Inductor: what is learned is the same, and quicker to reach."""
    return training.train(dataclasses.replace(TINY, **changes), compiler="eager")


@pytest.mark.slow
def test_contenders_start_alike_and_learn() -> None:
    """Before the first step all compute the same; behind it they do not."""
    found = {c: trained(connection=c) for c in ("residual", "hc", "mhc")}
    plain = found["residual"]
    assert plain["looks"][0]["validation"] == pytest.approx(math.log(256), rel=0.05)
    assert "forward" not in plain["looks"][-1]
    assert plain["looks"][-1]["validation"] < plain["looks"][0]["validation"]
    for name in ("hc", "mhc"):
        looks = found[name]["looks"]
        assert [look["step"] for look in looks] == sorted(training.looking(12))
        assert looks[0]["validation"] == pytest.approx(plain["looks"][0]["validation"], rel=1e-5)
        assert looks[-1]["validation"] != pytest.approx(plain["looks"][-1]["validation"], rel=1e-5)
        assert looks[0]["forward"] == pytest.approx(1, abs=1e-3)
        assert looks[0]["alive"] == 0 < looks[-1]["alive"]
        assert found[name]["parameters"] > plain["parameters"]
        assert len(found[name]["loss"]) == len(found[name]["norm"]) == 2
        assert not found[name]["diverged"]


@pytest.mark.slow
def test_a_trained_model_is_upgraded_in_between() -> None:
    """Its second phase begins where the first one ended."""
    plain, ours = (trained(connection=c, before=4, steps=5) for c in ("residual", "mhc"))
    assert plain["looks"][0]["validation"] < math.log(256) * 0.99
    assert ours["looks"][0]["validation"] == pytest.approx(plain["looks"][0]["validation"], rel=1e-5)
    assert plain["steps"] == ours["steps"] == 5


def test_what_diverges_ends() -> None:
    found = trained(connection="residual", lr=math.inf)
    assert found["diverged"]
    assert found["steps"] < TINY.steps


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["permutations", "kronecker"])
def test_other_projections_train(kind: str) -> None:
    found = trained(projection=kind, steps=3)
    assert found["looks"][-1]["from_identity"] > 0
    assert found["looks"][-1]["forward"] == pytest.approx(1, abs=1e-4)
