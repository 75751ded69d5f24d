"""bench/stability/store, questions: a stopped run goes on with what is missing; contenders are compared fairly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.stability import questions
from bench.stability.store import Store
from bench.stability.trial import Trial


def test_results_stay_under_their_trial(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    one, other = Trial(frozen=("pre", "res")), Trial(alpha="auto", seed=1)
    assert Store(path).missing([one, other, one]) == [one, other]
    store = Store(path)
    store.add(one, {"loss": [1.0]})
    again = Store(path)
    assert again.missing([one, other]) == [other]
    assert again.records[one]["loss"] == [1.0]
    assert {"date", "git", "cpu", "load"} <= again.records[one].keys()


def test_every_trial_has_a_key_of_its_own() -> None:
    trials = dict.fromkeys(questions.answering(list(questions.QUESTIONS)))
    assert len({trial.key for trial in trials}) == len(trials) > 100
    assert Trial("residual", lr=1e-3, layers=12, seed=2).key == "residual, layers 12, lr 0.001, seed 2"
    assert all(Trial.from_dict(trial.to_dict()) == trial for trial in trials)


@pytest.mark.parametrize("name", list(questions.QUESTIONS))
def test_seeds_go_last(name: str) -> None:
    """A run that is stopped has whole comparisons, of one question and of several."""
    for names in ([name], ["connections", name]):
        seeds = [trial.seed for trial in questions.answering(names)]
        assert seeds == sorted(seeds)
        assert len(set(seeds)) >= 2


def test_the_wide_residual_is_as_large() -> None:
    from mhc_compile import named_parameters, upgrade
    from mhc_compile.cli.language import batches, llama

    trial = dataclasses.replace(Trial(), layers=2, length=16, batch=1)
    ids = batches(1, 1, 16, 0)[0][0]
    model = llama(trial.hidden, trial.layers, trial.length)
    plain = sum(p.numel() for p in model.parameters())
    upgrade(model, (), {"input_ids": ids, "labels": ids}, verify=False)
    assert any(named_parameters(model))
    ours = sum(p.numel() for p in model.parameters())
    wide, narrower = (
        sum(p.numel() for p in llama(trial.hidden, trial.layers, trial.length, inner=inner).parameters())
        for inner in (questions.as_large(trial), questions.as_large(trial) - 1)
    )
    assert plain < narrower < ours <= wide
