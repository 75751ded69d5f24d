"""Networks whose skips and sums are spelt in other ways, or gated by what parameters make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.nets.networks import IMAGE, TOKENS, Block, C, Make, Trunk
from tests.nets.streams import Part


class LearnedGate(Block):
    """What parameters make scales the skip and the branch."""

    def forward(self, x: Any) -> Any:
        a, b = torch.stack([self.gamma, -self.gamma]).softmax(0).unbind(0)
        return self.connect("mlp", x, lambda u: b * self.mlp(self.norm1(u)), scale=a.clamp(0.2, 0.9))


class Spelt(Block):
    """Adds inside of other ops, a skip that is copied, an activation that is written twice."""

    def forward(self, x: Any) -> Any:
        if self.hand is None:
            x = torch.lerp(input=x, end=self.mlp(self.norm1(x)), weight=0.25)
            x = torch.addcmul(x, self.gamma, self.attn(x), value=0.5)
            x = torch.stack([x, self.cross(x)]).mean(0)
            return x.tanh().clone() + self.proj(x.tanh())
        x = self.connect("mlp", x, lambda u: 0.25 * self.mlp(self.norm1(u)), scale=0.75)
        x = self.connect("attn", x, lambda u: 0.5 * self.gamma * self.attn(u))
        x = self.lift(lambda s: s / 2, self.connect("cross", x, self.cross))
        return self.connect("proj", self.lift(torch.tanh, x), self.proj)


class GatedConv(Part):
    """Features second: a number per feature, and one per column, scale the skip."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(c, c, 3, padding=1), nn.Parameter(torch.linspace(-1, 1, c))
        self.column = nn.Parameter(torch.rand(5))

    def forward(self, x: Any) -> Any:
        return self.connect("conv", x, self.conv, scale=self.gate.sigmoid()[:, None, None] * self.column.exp())


class Behind(Trunk):
    """The region starts at a layer's output."""

    def __init__(self, block: type[Part], depth: int = 2, axis: int = -1, c: int = C) -> None:
        super().__init__(block, depth, axis, c)
        self.stem = nn.Linear(c, c) if axis == -1 else nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(self.stem(x))


# as in `networks.NETS`
NETS: dict[str, tuple[Make, Sequence[tuple[int, ...]], int]] = {
    "learned-gate": (lambda: Behind(LearnedGate), [TOKENS], 2),
    "learned-gate-of-channels": (lambda: Behind(GatedConv, axis=-3, c=4), [IMAGE], 2),
    "spelt": (lambda: Trunk(Spelt), [TOKENS], 8),
}
