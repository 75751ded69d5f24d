"""bench/train/mixing: what counts as n streams that a doubly stochastic matrix mixes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.train import mixing
from bench.train.contenders import entry
from bench.train.peers import PEERS
from bench.train.peers.layer import Layer, Peer
from bench.train.setup import Setup
from mhc_compile.ops import reference

TINY = Setup(hidden=64, layers=1, batch=1, length=8, prompt=8, compiler="eager")
STREAMS = torch.randn(3, 5, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def doubly_stochastic() -> Tensor:
    logits = torch.randn(3, 5, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return reference.sinkhorn(logits, 50)


def test_a_doubly_stochastic_matrix_is_found() -> None:
    off, why = mixing.judged(STREAMS, doubly_stochastic() @ STREAMS)
    assert why == ""
    assert off is not None
    assert off < 1e-6


@pytest.mark.parametrize(
    ("made", "why"),
    [
        pytest.param(STREAMS, "do not mix", id="identity"),
        pytest.param(torch.softmax(doubly_stochastic() * 9, -1) @ STREAMS, "not doubly stochastic", id="rows-only"),
        pytest.param(-STREAMS.flip(-2), "not doubly stochastic", id="negative"),
        pytest.param(STREAMS.tanh(), "not mixed by a matrix", id="nonlinear"),
        pytest.param(STREAMS.roll(1, 0), "not mixed by a matrix", id="other-tokens"),
    ],
)
def test_what_is_none_is_told(made: Tensor, why: str) -> None:
    assert why in mixing.judged(STREAMS, made)[1]


class Site(nn.Module):
    """Reads the first stream, writes to it, mixes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        def write(f: Tensor) -> Tensor:
            return x + self.gain * f.unsqueeze(-2)

        return x[..., 0, :], write


class Copies(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x] * 4, -2)


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(-2)


def streams_apart(model: Any, n: int) -> None:
    layers = model.model.layers
    for index, plain in enumerate(layers):
        layers[index] = Layer(plain, (Site(), Site()))
    layers[0].enter, layers[-1].leave = Copies(), Sum()


def one_stream(model: Any, n: int) -> None:
    layers = model.model.layers
    for index, plain in enumerate(layers):
        layers[index] = Layer(plain, (Single(), Single()))


class Single(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return x, lambda f: x + f


@pytest.mark.parametrize(
    ("widen", "why"),
    [
        pytest.param(streams_apart, "its streams do not mix", id="apart"),
        pytest.param(one_stream, "between layers it keeps 1 x C numbers per token", id="one-stream"),
    ],
)
def test_a_library_without_mixing_is_refused(monkeypatch: pytest.MonkeyPatch, widen: Any, why: str) -> None:
    monkeypatch.setitem(PEERS, "other", Peer("other", "Other", widen, lambda state, n: state))
    assert why in mixing.peer_sums("other", TINY)[1]


def test_deepseek_v4_of_transformers_mixes() -> None:
    off, why = mixing.peer_sums("transformers/DeepSeek-V4", TINY)
    assert why == ""
    assert off is not None
    assert off < 1e-4


def test_our_sites_are_checked_by_the_op_they_call(monkeypatch: pytest.MonkeyPatch) -> None:
    one = entry("mhc", TINY)
    off, why = mixing.sums(one, TINY)
    assert why == ""
    assert off is not None
    assert 0 < off < mixing.STOCHASTIC
    monkeypatch.setattr(mixing, "STOCHASTIC", 0.0)
    assert "not doubly stochastic" in mixing.sums(one, TINY)[1]
    assert mixing.sums(entry("plain", TINY), TINY) == (None, "")
