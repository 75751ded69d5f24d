"""Branches without a module of their own, or with an opaque op behind it; owners that walk over their children."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.nets.generator.structure import Block, Structure


class Squash(torch.autograd.Function):
    """A tanh with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)


squash: Callable[[Tensor], Tensor] = Squash.apply


class FunctionBehind(Block):
    """`x + Function(f(x))`."""

    def forward(self, x: Any) -> Any:
        x = self.connect("f", x, lambda u: squash(self.f(u)))
        return self.connect("g", x, lambda u: self.g(squash(u)))


class RawWeights(Block):
    """The branches' last work is done in the owner's own forward, in a loop over weights."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(c, c) / c**0.5) for _ in range(3))

    def forward(self, x: Any) -> Any:
        for w in self.weights:
            x = self.connect("w", x, lambda u, w=w: self.norm(u) @ w)  # type: ignore[misc]  # bound now
        return x


class Einsum(Block):
    """Two branches of raw weights, one statement each."""

    def forward(self, x: Any) -> Any:
        x = self.connect("1", x, lambda u: torch.einsum("btc,dc->btd", self.norm(u), self.f.weight))
        return self.connect("2", x, lambda u: torch.nn.functional.linear(u, self.g.weight).tanh())


class OwnSequence(nn.Sequential):
    """A Sequential that adds its input to what it makes."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + super().forward(x)  # type: ignore[no-untyped-call]  # torch's
        return out


class Walker(nn.Module):
    """An owner that meets its children by a walk."""

    def __init__(self, c: int, walk: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.norm, self.f, self.act = nn.LayerNorm(c), nn.Linear(c, c), nn.Tanh()
        self.walk = walk

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for child in self.walk(self):
            h = child(h)
        return x + h


class OwnList(nn.ModuleList):
    """A ModuleList with a forward: its length and its last member count."""

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self[: len(self) - 1]:
            h = layer(h)
        out: Tensor = x + self[-1](h)
        return out


class Owning(Block):
    """A structure whose one connection stands in a module that walks over its children."""

    def __init__(self, c: int, owner: str) -> None:
        super().__init__(c)
        self.owner = OWNERS[owner](c)
        self.by_hand = owner

    def forward(self, x: Any) -> Any:
        if self.hand is None:
            return self.owner(x)
        return self.connect("f", x, self._branch)

    def _branch(self, u: Tensor) -> Tensor:
        for name, child in self.owner.named_children():
            if name != "mhc":
                u = child(u)
        return u


def _layers(c: int) -> tuple[nn.Module, ...]:
    return nn.LayerNorm(c), nn.Linear(c, c), nn.Tanh()


OWNERS: dict[str, Callable[[int], nn.Module]] = {
    "Sequential": lambda c: OwnSequence(*_layers(c)),
    "ModuleList": lambda c: OwnList(_layers(c)),
    "children": lambda c: Walker(c, lambda m: m.children()),
    "named_children": lambda c: Walker(c, lambda m: [child for _, child in m.named_children()]),
    "_modules": lambda c: Walker(c, lambda m: m._modules.values()),
}
STRUCTURES = {
    "autograd.Function behind": Structure(FunctionBehind, (2,)),
    "raw weights": Structure(RawWeights, (3,)),
    "einsum": Structure(Einsum, (2,)),
} | {f"owner walks by {owner}": Structure(partial(Owning, owner=owner)) for owner in OWNERS}
