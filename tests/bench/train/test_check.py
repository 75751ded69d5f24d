"""bench/train/check: wrong values, wrong gradients and losses that do not fall are found; what is right passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.train import check
from bench.train.contenders import Entry, entry
from bench.train.double import Double, Twin
from bench.train.setup import Setup

TINY = Setup(hidden=64, layers=2, batch=2, length=8, prompt=8)


def uncompiled(name: str = "plain") -> Entry:
    one = entry(name, TINY)
    one.compiled = one.model
    return one


class WrongGradient(torch.autograd.Function):
    """The identity, with a gradient that is 1 % off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 1.01


def wrong_values(module: Any, args: Any, out: Tensor) -> Tensor:
    return out * 1.001


def wrong_gradient(module: Any, args: Any, out: Tensor) -> Tensor:
    made: Tensor = WrongGradient.apply(out)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return made


@pytest.mark.parametrize("name", ["plain", "transformers/DeepSeek-V4"], ids=["plain", "deepseek"])
def test_what_is_right_passes_and_keeps_its_parameters(name: str) -> None:
    one = uncompiled(name)
    before = {key: value.clone() for key, value in one.model.state_dict().items()}
    found = check.check(one, TINY)
    assert found.why == ""
    assert found.errors.keys() == {"logits", "gradients", "prefill", "decode"}
    assert max(found.errors.values()) < 1e-4
    assert found.losses[-1] < found.losses[0]
    assert all(torch.equal(value, before[key]) for key, value in one.model.state_dict().items())


@pytest.mark.parametrize(
    ("hook", "why"),
    [pytest.param(wrong_values, "logits", id="values"), pytest.param(wrong_gradient, "gradients", id="gradients")],
)
def test_what_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch, hook: Any, why: str) -> None:
    one = uncompiled()
    twin = Twin(one, TINY)  # made before the fault, as a definition is
    monkeypatch.setattr(check, "Twin", lambda one, setup: twin)
    one.model.get_submodule("model.norm").register_forward_hook(hook)
    found = check.check(one, TINY)
    assert found.why.startswith("not its own definition in float64")
    assert why in found.why
    assert found.losses == []


def test_long_sequences_are_checked_by_shorter_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LONGEST", 4)
    one = uncompiled()
    lengths: list[int] = []
    one.model.register_forward_pre_hook(
        lambda _, __, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    assert max(check.errors(one, TINY).values()) < 1e-4
    assert set(lengths) == {4, 1}


def test_parameters_are_moved_for_the_check_only() -> None:
    one = uncompiled("transformers/DeepSeek-V4")
    before = [parameter.detach().clone() for parameter in one.connections]
    with check.moved(one):
        assert not any(torch.equal(p, old) for p, old in zip(one.connections, before, strict=True))
    assert all(torch.equal(p, old) for p, old in zip(one.connections, before, strict=True))


@pytest.mark.parametrize(
    "losses", [[3.0, 3.1], [3.0, float("nan")], [float("inf"), 3.0]], ids=["rising", "nan", "infinite"]
)
def test_a_loss_must_fall(losses: list[float]) -> None:
    assert check.not_falling([3.0, 2.9]) == ""
    assert "does not fall" in check.not_falling(losses)


def test_a_gradient_that_is_missing_is_infinitely_wrong() -> None:
    ones = torch.ones(2, dtype=torch.float64)
    assert check._gradient(None, ones, 1e-4) == float("inf")
    assert check._gradient(None, None, 1e-4) == 0.0
    assert check._gradient(ones * 1.5, ones, 1e-4) == pytest.approx(0.5)


def test_float32_is_read_as_float64() -> None:
    x = torch.ones(2, dtype=torch.bfloat16)
    with Double():
        assert (
            x.float().dtype == x.to(torch.float32).dtype == torch.zeros(1, dtype=torch.float32).dtype == torch.float64
        )
        assert x.to(torch.bfloat16).dtype == torch.bfloat16
    assert x.float().dtype == torch.float32
