"""Networks by number: the generator makes what it says, its judge can say no, and a few networks are right."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch

import mhc_compile as mhc
from mhc_compile.codegen.inspect import subprocess_call
from mhc_compile.codegen.runtime import dispatch
from tests.nets.generator import judge, network, runner
from tests.nets.generator.__main__ import main
from tests.nets.generator.families import FAMILIES, STRUCTURES
from tests.nets.generator.hand import Placed, UnplannedError
from tests.nets.generator.network import Drawing, Net, draw
from tests.nets.generator.uses import USES
from tests.nets.random_networks import EXAMPLES
from tests.nets.streams import Hand, by_hand

STEP, SHARE = 37, 2  # between numbers: structures of every family lead; one in so many examples


def drawing(*structures: str, **given: Any) -> Drawing:
    """A network that is not drawn."""
    usual = Drawing(0, structures, 6, 2, 3, 3, ("mhc", "sinkhorn"), tail="kept", use="again", training=False)
    return dataclasses.replace(usual, **given)


def home(name: str) -> str:
    return "images/pre-norm" if STRUCTURES[name].channels_first else "common/pre-norm"


@pytest.mark.core(2)
@pytest.mark.parametrize("number", range(0, STEP * (EXAMPLES // SHARE), STEP))
def test_network(number: int) -> None:
    assert judge.judge(runner.Choice().draw(number)) in ("right", "refused", "told", "torch")


@pytest.mark.core(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_streams_that_do_not_mix_are_the_plain_network(family: str) -> None:
    """What stands for a structure by hand is the structure: where no site mixes, all is as in the plain network."""
    for name, training in itertools.product(FAMILIES[family], (False, True)):
        made = drawing(home(f"{family}/{name}"), f"{family}/{name}", training=training)
        torch.manual_seed(0)
        plain = Net(made).double().train(training)
        x = judge.tokens(plain, made, made.length)
        hand = by_hand(plain, Placed("mhc", "sinkhorn", 2, {}))
        found, expected = judge.Run(hand, hand, x).values, judge.Run(plain, plain, x).values
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, msg=f"{name}: {key}")


def test_every_structure_and_every_use_is_drawn() -> None:
    drawn = [draw(number, list(STRUCTURES), list(USES)) for number in range(2000)]
    assert {name for each in drawn for name in each.structures} == STRUCTURES.keys()
    assert {each.use for each in drawn} == USES.keys()
    assert {each.tail for each in drawn} == set(network.TAILS)
    assert drawn[7] == draw(7, list(STRUCTURES), list(USES))


def wrong_coefficients(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Hand.coefficients
    monkeypatch.setattr(Hand, "coefficients", lambda *args: tuple(1.001 * map_ for map_ in right(*args)))


def silently_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    def plainly(step: Any, _: Drawing) -> Callable[..., Any]:
        def run(x: torch.Tensor) -> Any:
            with mhc.plain(step):
                return step(x)

        return run

    monkeypatch.setattr(judge, "_compiled", plainly)


def lying_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    right = judge._compiled

    def turned(step: Any, made: Drawing) -> Callable[..., Any]:
        return lambda x: tuple(o.mT.contiguous().mT if o.dim() else o for o in right(step, made)(x))

    monkeypatch.setattr(judge, "_compiled", turned)


def moved_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    right = mhc.upgrade

    def upgrade(model: Net, *args: Any, **options: Any) -> mhc.Report:
        report = right(model, *args, **options)
        model.get_buffer("pieces.0.state").mul_(2)
        return report

    monkeypatch.setattr(mhc, "upgrade", upgrade)


def too_few_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    right = mhc.upgrade
    monkeypatch.setattr(
        mhc, "upgrade", lambda model, args, config: right(model, args, config=mhc.Config(streams=3, include=("*attn",)))
    )


@pytest.mark.core(1)
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (wrong_coefficients, "is off by"),
        (silently_plain, "it is plain|only one side has a gradient"),
        (lying_otherwise, "outputs lie in memory"),
        (moved_buffer, "upgrade moves buffers"),
        (too_few_sites, "has 1 sites"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_judge_says_no(spoil: Callable[[pytest.MonkeyPatch], None], what: str, monkeypatch: Any) -> None:
    first = "effects/state, skip in front" if spoil is moved_buffer else "common/pre-norm"
    made = drawing(first, "common/pre-norm")
    assert judge.judge(made) == "right"
    spoil(monkeypatch)
    with pytest.raises(judge.FaultError, match=what) as caught:
        judge.judge(made)
    assert repr(made) in str(caught.value)
    assert "class PreNorm(Block)" in str(caught.value)


def test_what_was_not_planned_is_refused() -> None:
    """The judge knows connections that the plan does not."""
    made = drawing("calls/tied module", use="more iterations")
    hand = by_hand(Net(made).double(), Placed("mhc", "sinkhorn", 2, {}, names={}))
    with pytest.raises(UnplannedError):
        hand(judge.tokens(hand, made, 3))


def kernels_launched() -> int:
    """Judge a network by generated kernels, and count them."""
    with mock.patch.object(dispatch, "_launch", wraps=dispatch._launch) as launch:
        assert judge.judge(drawing("common/pre-norm", kernels="triton")) == "right"
    return launch.call_count


@pytest.mark.slow
@pytest.mark.xdist_group("interpreter")
def test_generated_kernels_run() -> None:
    assert subprocess_call.call(True, kernels_launched) > 0


def test_the_long_run_counts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", InThisProcess)
    verdicts: Iterator[Any] = iter(
        ["right", judge.FaultError(drawing("common/pre-norm"), "all is wrong"), ValueError("the judge")]
    )

    def judged(*_: Any) -> str:
        verdict = next(verdicts)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    monkeypatch.setattr(runner, "judge", judged)
    assert main(["--networks", "3"]) == 1
    told = capsys.readouterr().out
    assert "all is wrong" in told
    assert told.splitlines()[-1] == "3 networks: {'right': 1, 'wrong': 1, 'broken': 1}"


class InThisProcess:
    """Stands for a pool of processes."""

    map = staticmethod(map)

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None: ...
