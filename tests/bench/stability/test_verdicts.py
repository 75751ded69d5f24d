"""bench/stability/verdicts: means, intervals, the best learning rate, spikes and what diverged."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bench.stability import verdicts
from bench.stability.trial import Trial
from bench.stability.verdicts import Mean


def record(validation: float, **more: Any) -> dict[str, Any]:
    return {
        "loss": [5.0, 3.0, 2.0],
        "norm": [9.0, 2.0, 1.0],
        "steps": 30,
        "diverged": False,
        "looks": [{"step": 30, "validation": validation}],
    } | more


def gains(validation: float, forward: float, alive: float) -> list[dict[str, float]]:
    return [{"step": 30, "validation": validation, "forward": forward, "backward": 1.5, "alive": alive}]


def test_the_interval_is_students() -> None:
    """Three values 1, 2, 3: 2 ± 4.303 / sqrt(3)."""
    mean = Mean.of([1.0, 2.0, 3.0])
    assert mean.value == 2
    assert mean.half == pytest.approx(4.303 / math.sqrt(3))
    assert str(mean) == "2.000 ± 2.484"
    assert str(Mean.of([1.5])) == "1.500"


def test_contenders_are_compared_at_their_own_best_rate() -> None:
    plain, ours = Trial("residual", warmup=10), Trial("mhc", warmup=10)
    records = {}
    for seed, shift in enumerate((0.0, 0.3)):
        for lr, loss in ((1e-3, 1.5), (3e-3, 1.8)):
            records[Trial("residual", lr=lr, seed=seed, warmup=10)] = record(loss + shift)
        for lr, loss in ((1e-3, 1.6), (3e-3, 1.4)):
            looks = gains(loss + shift, 1.0 + shift, 1.0 - shift)
            records[Trial("mhc", lr=lr, seed=seed, warmup=10)] = record(loss + shift, looks=looks)
    found = {(one.name, one.lr): one for one in verdicts.summaries(records)}
    assert {key for key, one in found.items() if one.best} == {(plain.name, 1e-3), (ours.name, 3e-3)}
    assert found[ours.name, 3e-3].forward == 1.3
    assert found[ours.name, 3e-3].alive == 0.7
    assert found[plain.name, 1e-3].forward is None
    less = verdicts.paired(found[ours.name, 3e-3], found[plain.name, 1e-3])
    assert less is not None
    assert less.value == pytest.approx(-0.1)
    assert less.half == pytest.approx(0, abs=1e-9)  # the seed is the same on both sides


def test_rows_compare_with_equal_settings_where_they_are() -> None:
    names = [Trial(c, layers=layers) for layers in (24, 6) for c in ("residual", "mhc")]
    losses = (1.5, 1.4, 2.5, 2.3)
    records = {trial: record(loss) for trial, loss in zip(names, losses, strict=True)}
    assert [row[4] for row in verdicts.rows(verdicts.summaries(records))] == ["", "-0.100", "1.000", "-0.200"]
    against = [row[4] for row in verdicts.rows(verdicts.summaries(records), "mhc")]
    assert against == ["0.100", "", "0.200", "0.900"]
    del records[names[2]]
    assert [row[4] for row in verdicts.rows(verdicts.summaries(records))] == ["", "-0.100", "0.800"]


def test_rows_tell_of_streams() -> None:
    records = {Trial("residual"): record(1.5), Trial("mhc"): record(1.4, looks=gains(1.4, 1.2, 1.0))}
    plain, ours = verdicts.rows(verdicts.summaries(records))
    assert plain == ("residual", "0.003*", "1", "1.500", "", "nan", "0.00", "", "", "")
    assert ours == ("mhc", "0.003*", "1", "1.400", "-0.100", "nan", "0.00", "1.2", "1.5", "100%")


def test_the_norm_is_that_behind_the_warmup() -> None:
    assert verdicts.worst_norm(record(1.0), 0) == 9
    assert verdicts.worst_norm(record(1.0), 10) == 2
    assert verdicts.worst_norm(record(1.0), 11) == 1


def test_a_spike_and_a_divergence() -> None:
    assert verdicts.rise([5.0, 4.0, 3.0]) == 0
    assert verdicts.rise([3.0, 3.0, 3.0, 9.0, 3.0]) == pytest.approx(2)
    assert verdicts.rise([3.0, math.nan]) == math.inf
    records = {Trial("residual"): record(1.5), Trial("hc"): record(1.0, diverged=True)}
    _, diverged = verdicts.summaries(records)
    assert diverged.diverged == 1
    assert verdicts.rows([diverged])[0][3] == "inf (1 diverged)"
