"""Connections in the ways that people spell them; where streams cannot flow, the report has a row for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.nets.generator.structure import Block, Structure

Plain = Callable[[Block, Any], Any]


class Spelt(Block):
    """A connection as it is spelt, and as it is meant."""

    def __init__(self, c: int, spelling: str) -> None:
        super().__init__(c)
        self.plain, self.meant = SPELLINGS[spelling]

    def forward(self, x: Any) -> Any:
        return self.plain(self, x) if self.hand is None else self.meant(self, x)


class Highway(Block):
    """The gate reads what it gates, from outside; a row is right too."""

    def forward(self, x: Any) -> Any:
        gate = self.g(self.leave(x)).sigmoid()
        if self.hand is None:
            return x * (1 - gate) + gate * self.layer(x)
        return self.connect("f", x, lambda u: gate * self.layer(u), scale=1 - gate)


def _mean(scale: float, f: float) -> Plain:
    return lambda b, x: b.connect("f", x, lambda u: f * b.layer(u), scale=scale)


def _simple(b: Block, x: Any) -> Any:
    return b.connect("f", x, b.layer)


def _lifted(op: Callable[[Block, Tensor], Tensor]) -> Plain:
    return lambda b, x: b.connect("f", b.lift(partial(op, b), x), b.layer)


def _norm_twice(b: Block, x: Any) -> Any:
    return b.connect("f", b.lift(b.norm, x), lambda u: b.f(u).tanh())


# how it is spelt, and what the streams do
SPELLINGS: dict[str, tuple[Plain, Plain]] = {
    "clone": (lambda b, x: x.clone() + b.layer(x), _simple),
    "keywords": (lambda b, x: torch.add(input=x, other=b.layer(x)), _simple),
    "method with a keyword": (lambda b, x: b.layer(x).add(other=x), _simple),
    "alpha": (lambda b, x: torch.add(x, b.layer(x), alpha=0.5), _mean(1.0, 0.5)),
    "lerp": (lambda b, x: torch.lerp(x, b.layer(x), 0.3), _mean(0.7, 0.3)),
    "lerp of keywords": (lambda b, x: x.lerp(end=b.layer(x), weight=0.3), _mean(0.7, 0.3)),
    "addcmul": (
        lambda b, x: torch.addcmul(x, b.gamma, b.layer(x)),
        lambda b, x: b.connect("f", x, lambda u: b.gamma * b.layer(u)),
    ),
    "addcmul with a value": (
        lambda b, x: x.addcmul(b.gamma, b.layer(x), value=0.5),
        lambda b, x: b.connect("f", x, lambda u: 0.5 * b.gamma * b.layer(u)),
    ),
    "tensor scale": (lambda b, x: x * torch.tensor(0.7, dtype=x.dtype) + b.layer(x), _mean(0.7, 1.0)),
    "norm written twice": (lambda b, x: b.norm(x) + b.f(b.norm(x)).tanh(), _norm_twice),
    "relu written twice": (lambda b, x: F.relu(x) + b.layer(F.relu(x)), _lifted(lambda b, x: F.relu(x))),
    "mean of two": (lambda b, x: 2 * torch.stack([x, b.layer(x)]).mean(0), _simple),
    "sum of a list": (lambda b, x: sum([x], start=b.layer(x)), _simple),
    "divided": (lambda b, x: (x + b.layer(x)) / 2, lambda b, x: b.lift(lambda s: s / 2, _simple(b, x))),
    "rsub": (
        lambda b, x: torch.rsub(b.layer(x), x),
        lambda b, x: b.connect("f", x, b.layer, sign=-1),
    ),
}

STRUCTURES = {name: Structure(partial(Spelt, spelling=name), (1, 0)) for name in SPELLINGS} | {
    "highway": Structure(Highway, (1, 0)),
}
