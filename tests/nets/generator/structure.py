"""What a structure is, and the parts that structures are made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.nets.streams import Part
from tests.nets.structures import Attention, mlp


@dataclasses.dataclass(frozen=True)
class Structure:
    """A module that a network may hold, and what may be found in it.

    Attributes:
        make: makes it for a number of features.
        sites: how many sites it may get. With 0 among several numbers it may be told of instead, as a residual
            connection; with 0 alone it is none.
        channels_first: takes pictures.
        exact: computes in the precision it is given.
        refuses: an error of ours is right too.
        trains_only: makes a call in training that evaluation does not make.
        loops: calls its module `times` times.
    """

    make: Callable[[int], nn.Module]
    sites: tuple[int, ...] = (1,)
    channels_first: bool = False
    exact: bool = True
    refuses: bool = False
    trains_only: bool = False
    loops: bool = False

    @property
    def is_none(self) -> bool:
        """Whether it holds no residual connection, so that a region ends there."""
        return self.sites == (0,)


class Block(Part):
    """The layers that most structures need."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(c), Attention(c), mlp(c)
        self.f, self.g = nn.Linear(c, c), nn.Linear(c, c)
        self.gamma = nn.Parameter(torch.linspace(-1, 1, c))

    def layer(self, u: Tensor) -> Tensor:
        """A branch like any other."""
        out: Tensor = self.f(self.norm(u)).tanh()
        return out
