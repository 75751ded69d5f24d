"""Connections on pictures, whose features are not last in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets.generator.structure import Structure
from tests.nets.streams import Part


class Convolutions(Part):
    """The layers that connections on pictures need."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.deep, self.norm = (
            nn.Conv2d(c, c, 3, padding=1),
            nn.Conv2d(c, c, 3, 1, 1, groups=c),
            nn.GroupNorm(1, c),
        )
        self.batch, self.last = nn.BatchNorm2d(c), nn.LayerNorm(c)
        self.up, self.down = nn.Linear(c, 2 * c), nn.Linear(2 * c, c)
        self.gate = nn.Parameter(torch.linspace(-1, 1, c)[:, None, None])


class Pre(Convolutions):
    def forward(self, x: Any) -> Any:
        return self.connect("conv", x, lambda u: self.conv(self.norm(u).relu()))


class Post(Convolutions):
    def forward(self, x: Any) -> Any:
        return self.lift(torch.relu, self.connect("batch", x, lambda u: self.batch(self.conv(u))))


class NextBlock(Convolutions):
    """Features last inside the branch."""

    def forward(self, x: Any) -> Any:
        return self.connect("branch", x, self._branch)

    def _branch(self, u: Tensor) -> Tensor:
        u = self.last(self.deep(u).permute(0, 2, 3, 1))
        return self.down(self.up(u).tanh()).permute(0, 3, 1, 2)


class GatedPicture(Convolutions):
    """The skip is scaled by what a parameter makes, a number per feature."""

    def forward(self, x: Any) -> Any:
        return self.connect("conv", x, self.conv, scale=self.gate.sigmoid())


class Twice(Convolutions):
    """Two connections, one of them in place."""

    def forward(self, x: Any) -> Any:
        x = self.connect("conv", x, lambda u: self.conv(u.tanh()))
        if self.hand is not None:
            return self.connect("deep", x, self.deep)
        f = self.deep(x)
        f += x
        return f


class Dropped(Convolutions):
    """Numbers are drawn for each element, in the order in which these lie."""

    def forward(self, x: Any) -> Any:
        return self.connect("conv", x, lambda u: F.dropout(self.conv(self.norm(u)) * torch.rand_like(u), 0.25))


STRUCTURES = {
    "dropout": Structure(Dropped, channels_first=True),
    "pre-norm": Structure(Pre, channels_first=True),
    "batch norm behind": Structure(Post, channels_first=True),
    "features last inside": Structure(NextBlock, channels_first=True),
    "gated": Structure(GatedPicture, channels_first=True),
    "in place": Structure(Twice, (2,), channels_first=True),
}
