"""Blocks whose branches do more than compute: modes, random numbers, state; the skip is often made behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets.streams import Part

C = 6


class Effects(Part):
    """`scale x + f(x)`, where f is a row of steps by name, and the skip is scaled before them or behind."""

    state: Tensor

    def __init__(self, steps: Sequence[str], skip: str) -> None:
        super().__init__()
        self.steps, self.skip = steps, skip
        self.first, self.last = nn.Linear(C, C), nn.Linear(C, C)
        self.frozen, self.narrow = nn.Linear(C, C), nn.Linear(C, C)
        self.norm, self.gamma = nn.LayerNorm(C), nn.Parameter(torch.linspace(-1, 1, C))
        self.register_buffer("state", torch.ones(C))

    def forward(self, x: Any) -> Any:
        if self.hand is not None:
            return self.connect("last", x, self.branch, scale=SKIPS[self.skip](self))
        scaled = SKIPS[self.skip](self) * x if self.skip.startswith("early") else None
        f = self.branch(x)
        return (SKIPS[self.skip](self) * x if scaled is None else scaled) + f

    def branch(self, u: Tensor) -> Tensor:
        h = u
        for step in self.steps:
            h = STEPS[step](self, h)
        return self.last(h)


def _no_grad(block: Effects, h: Tensor) -> Tensor:
    with torch.no_grad():
        return block.frozen(h)


def _overwritten_without_gradients(block: Effects, h: Tensor) -> Tensor:
    h = block.first(h)
    with torch.no_grad():
        h += 0.5
        h.mul_(2.0)
    return h


def _autocast(block: Effects, h: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return block.narrow(h).to(h.dtype)


def _state(block: Effects, h: Tensor) -> Tensor:
    h = h + block.state
    block.state.mul_(0.5)
    return h


def _read_through_a_view(block: Effects, h: Tensor) -> Tensor:
    h = block.first(h)
    before = h.mT
    h += 1.0
    return h + before.mT


STEPS: dict[str, Callable[[Effects, Tensor], Tensor]] = {
    "norm": lambda block, h: block.norm(h),
    "linear": lambda block, h: block.first(h).tanh(),
    "no_grad": _no_grad,
    "overwritten without gradients": _overwritten_without_gradients,
    "autocast": _autocast,
    "state": _state,
    "view": _read_through_a_view,
    "random": lambda block, h: h * torch.rand_like(h),
    "dropout": lambda block, h: F.dropout(h, 0.3, training=True),
}
SKIPS: dict[str, Callable[[Effects], Any]] = {
    "early number": lambda block: 0.8,
    "number": lambda block: 0.8,
    "parameter": lambda block: block.gamma,
    "of a parameter": lambda block: 1.0 + block.gamma.exp(),
}


class Net(Part):
    """Such blocks in one region; a random number is drawn in front of each, for the tokens that come in."""

    def __init__(self, blocks: Sequence[tuple[Sequence[str], str]]) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(C, C), nn.ModuleList(Effects(*block) for block in blocks)

    def forward(self, x: Tensor) -> Tensor:
        streams = self.enter(self.stem(x))
        for block in self.blocks:
            streams = block(streams)
        return self.leave(streams) * torch.rand(())
