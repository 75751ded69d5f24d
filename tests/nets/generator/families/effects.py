"""Branches that do more than compute, the skip scaled in front of them or behind: order, modes and RNG are kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets.generator.structure import Block, Structure


class Effect(Block):
    """`scale x + f(x)`, where f holds the effect."""

    def __init__(self, c: int, effect: str, behind: bool) -> None:
        super().__init__(c)
        self.effect, self.behind = EFFECTS[effect], behind
        self.state: Tensor
        self.register_buffer("state", torch.ones(c))
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Any) -> Any:
        if self.hand is not None:
            return self.connect("f", x, self.branch, scale=0.9)
        if self.behind:
            residual = x
            h = self.branch(x)
            return residual * 0.9 + h
        skip = x * 0.9
        return skip + self.branch(x)

    def branch(self, u: Tensor) -> Tensor:
        out: Tensor = self.g(self.effect(self, u))
        return out


class Between(Block):
    """A random number for what follows is drawn between the branch and the skip."""

    def forward(self, x: Any) -> Any:
        drawn = []

        def branch(u: Tensor) -> Tensor:
            h = F.dropout(self.layer(u), 0.25, training=True)
            drawn.append(torch.rand((), dtype=h.dtype))
            return h

        if self.hand is None:
            h = branch(x)
            x = x * 0.9 + h
        else:
            x = self.connect("f", x, branch, scale=0.9)
        return x, (self.leave(x) * drawn[0]).sin().mean()


def _no_grad(block: Effect, u: Tensor) -> Tensor:
    with torch.no_grad():
        return block.layer(u)


def _detached_state(block: Effect, u: Tensor) -> Tensor:
    h = block.layer(u)
    with torch.no_grad():
        block.state.mul_(0.9).add_(h.detach().mean((0, 1)), alpha=0.1)
    return h + block.state


def _autocast(block: Effect, u: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        h = F.linear(u.float(), block.f.weight.float())
    return h.to(u.dtype)


def _state(block: Effect, u: Tensor) -> Tensor:
    h = block.norm(u) + block.state
    block.state.mul_(0.5)
    return h


def _overwritten(block: Effect, u: Tensor) -> Tensor:
    h = block.f(block.norm(u))
    with torch.no_grad():
        h.mul_(2.0)
    return h


def _two_draws(block: Effect, u: Tensor) -> Tensor:
    return block.layer(u) * torch.rand_like(u) + torch.randn_like(u)


def _drop_path(block: Effect, u: Tensor) -> Tensor:
    keep = u.new_empty(u.shape[0], 1, 1).bernoulli_(0.7)
    return block.layer(u) * keep / 0.7


EFFECTS: dict[str, Callable[[Effect, Tensor], Tensor]] = {
    "no_grad": _no_grad,
    "detached state": _detached_state,
    "autocast": _autocast,
    "state": _state,
    "overwritten without gradients": _overwritten,
    "two draws": _two_draws,
    "drop path": _drop_path,
    "dropout": lambda block, u: block.drop(block.layer(u)),
}
STRUCTURES = {
    f"{effect}, skip {place}": Structure(partial(Effect, effect=effect, behind=behind), exact=effect != "autocast")
    for effect in EFFECTS
    for place, behind in {"behind": True, "in front": False}.items()
} | {"draw between branch and skip": Structure(Between)}
