"""Models whose calls need not take the way that upgrade saw."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import mhc_compile as mhc
from tests.nets.small import perturb

C = 8
Model = TypeVar("Model", bound=nn.Module)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.f = nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x).tanh()
        return x + self.f(x).tanh()


class Deep(nn.Module):
    """Layers of which a call may skip some, or stop early; `loose` has them as connections of its own forward."""

    def __init__(self, depth: int = 4, *, loose: bool = False, stem: bool = True) -> None:
        super().__init__()
        self.stem = nn.Linear(C, C) if stem else nn.Identity()
        self.layers = nn.ModuleList(nn.Linear(C, C) if loose else Block() for _ in range(depth))
        self.loose, self.skip, self.exit = loose, frozenset[int](), 99

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, layer in enumerate(self.layers):
            if i == self.exit:
                break
            if i not in self.skip:
                x = x + layer(x).tanh() if self.loose else layer(x)
        return x * 2


class Tied(nn.Module):
    """One block, called several times."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor, times: int) -> Tensor:
        for _ in range(times):
            x = self.block(x)
        return x


def x(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 5)), C, generator=torch.Generator().manual_seed(3))


def moved(model: Model, *args: Any) -> Model:
    mhc.upgrade(model, args or (x(),))
    perturb(model)
    return model
