"""Norms, activations and views that are written twice: of a term and its twin one stays, where nobody can tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.nets.structures import tokens
from tests.passes.canonicalize.respelling import Function, respelt


def rms_norm(x: Tensor) -> Tensor:
    y = x.double()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def overwritten(self: Any, x: Tensor) -> Tensor:
    y = self.proj(x)
    a, b = y.relu(), y.relu()
    f = self.up(self.down(b))
    b[:, 0] = 0.0
    return a + f + b


def without_gradients(self: Any, x: Tensor) -> Tensor:
    y = self.proj(x)
    with torch.no_grad():
        kept = y.relu()
    return kept + self.proj(y.relu())


# what is written, and which op there is less of, by how many
MERGED = [
    pytest.param(lambda s, x: s.norm(x) + s.proj(s.norm(x)), "layer_norm", 1, id="norm(x) + f(norm(x))"),
    pytest.param(lambda s, x: s.proj(x.relu()) + x.relu(), "relu", 1, id="f(x.relu()) + x.relu()"),
    pytest.param(
        lambda s, x: F.relu(s.norm(x)) - s.proj(F.relu(s.norm(x))),
        "layer_norm",
        1,
        id="relu(norm(x)) - f(relu(norm(x)))",
    ),
    pytest.param(lambda s, x: 0.5 * s.norm(x) + s.proj(s.norm(x)), "layer_norm", 1, id="0.5 * norm(x) + f(norm(x))"),
    pytest.param(lambda s, x: s.norm(x).clone() + s.proj(s.norm(x)), "layer_norm", 1, id="norm(x).clone() + ..."),
    pytest.param(lambda s, x: rms_norm(x) + s.proj(rms_norm(x)), "rsqrt", 1, id="rms_norm(x) + f(rms_norm(x))"),
    pytest.param(lambda s, x: x[:, 1:] + s.proj(x[:, 1:]), "getitem", 1, id="x[:, 1:] + f(x[:, 1:])"),
    pytest.param(
        lambda s, x: torch.cat([x, x.sin()], 1) + s.proj(torch.cat([x, x.sin()], 1)), "cat", 1, id="cat + f(cat)"
    ),
]
KEPT = [
    overwritten,
    without_gradients,
    pytest.param(lambda s, x: s.norm(x) + s.proj(s.norm2(x)), id="norm(x) + f(norm2(x))"),
    pytest.param(lambda s, x: x.relu() + s.proj(x.sigmoid()), id="x.relu() + f(x.sigmoid())"),
    pytest.param(lambda s, x: s.norm(x) * s.proj(s.norm(x)), id="norm(x) * f(norm(x))"),  # no add
    pytest.param(lambda s, x: F.dropout(x, 0.0) + s.proj(F.dropout(x, 0.0)), id="dropout(x) + f(dropout(x))"),
]


@pytest.mark.parametrize(("step", "op", "fewer"), MERGED)
def test_merged(step: Function, op: str, fewer: int) -> None:
    was, now, error = respelt(step, tokens())
    assert was.count(op) - now.count(op) == fewer
    assert error == 0


@pytest.mark.parametrize("step", KEPT)
def test_kept(step: Function) -> None:
    was, now, error = respelt(step, tokens())
    assert was == now
    assert error == 0
