"""Adds that are part of another op, before and after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.nets.structures import tokens
from tests.passes.canonicalize.respelling import Function, respelt

W = "linear"


def lerp_by_its_own(self: Any, x: Tensor) -> Tensor:
    y = x.exp()
    f = self.proj(y)
    return y.lerp_(f, 0.3)


TAKEN_APART = [
    pytest.param(lambda s, x: torch.lerp(x, s.proj(x), 0.3), [W, "mul", "mul", "add"], id="lerp(x, f(x), 0.3)"),
    pytest.param(lambda s, x: s.proj(x).lerp(x, 0.3), [W, "mul", "mul", "add"], id="f(x).lerp(x, 0.3)"),
    pytest.param(
        lambda s, x: torch.lerp(input=x, end=s.proj(x), weight=s.gamma.sigmoid()),
        [W, "sigmoid", "sub", "mul", "mul", "add"],
        id="lerp(input=x, end=f(x), weight=gamma.sigmoid())",
    ),
    pytest.param(lambda s, x: lerp_by_its_own(s, x), ["exp", W, "mul", "mul", "add"], id="lerp_"),
    pytest.param(lambda s, x: torch.addcmul(x, s.gamma, s.proj(x)), [W, "mul", "add"], id="addcmul(x, gamma, f(x))"),
    pytest.param(
        lambda s, x: torch.addcmul(s.proj(x), x, s.gamma, value=2),
        [W, "mul", "mul", "add"],
        id="addcmul(f(x), x, gamma)",
    ),
    pytest.param(
        lambda s, x: torch.addcdiv(x, s.proj(x), s.gamma), [W, "truediv", "add"], id="addcdiv(x, f(x), gamma)"
    ),
    pytest.param(
        lambda s, x: torch.baddbmm(x, x, s.gamma.diag().expand(2, 8, 8), beta=0.5, alpha=2),
        ["diag", "expand", "matmul", "mul", "mul", "add"],
        id="baddbmm(x, x, w, beta=0.5, alpha=2)",
    ),
    pytest.param(lambda s, x: torch.rsub(s.proj(x), x), [W, "sub"], id="rsub(f(x), x)"),
]
KEPT = [
    pytest.param(lambda s, x: torch.lerp(x, x.exp(), 0.3), id="lerp(x, x.exp(), 0.3)"),  # nothing works in between
    pytest.param(lambda s, x: torch.lerp(x, s.proj(x), x.sigmoid()), id="lerp(x, f(x), gate)"),
    pytest.param(lambda s, x: torch.addcmul(s.proj(x), s.up(s.down(x)), x[:1]), id="addcmul(f(x), g(x), x[:1])"),
    pytest.param(lambda s, x: torch.addmm(s.gamma, x[0], s.proj.weight), id="addmm(bias, x, w)"),
]


@pytest.mark.parametrize(("step", "after"), TAKEN_APART)
def test_taken_apart(step: Function, after: list[str]) -> None:
    _, now, error = respelt(step, tokens())
    assert now == after
    assert error < 1e-6


@pytest.mark.parametrize("step", KEPT)
def test_kept(step: Function) -> None:
    was, now, error = respelt(step, tokens())
    assert was == now
    assert error == 0
