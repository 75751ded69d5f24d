"""Blocks that the model checkpoints itself, with attention and dropout in them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.nets.generator.structure import Block, Structure


class Attending(Block):
    """Attention and an MLP, with dropout where asked."""

    def __init__(self, c: int, rate: float, sdpa: bool) -> None:
        super().__init__(c)
        self.qkv, self.drop, self.sdpa = nn.Linear(c, 3 * c), nn.Dropout(rate), sdpa

    def forward(self, x: Any) -> Any:
        x = self.connect("f", x, lambda u: self.drop(self.f(self.attend(self.norm(u)))))
        return self.connect("mlp", x, lambda u: self.drop(self.mlp(u)))

    def attend(self, u: Tensor) -> Tensor:
        if not self.sdpa:
            return self.attn(u)
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(u).chunk(3, -1))
        rate = self.drop.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate).transpose(1, 2).flatten(2)


class Checkpointed(Block):
    """The block is checkpointed as a whole, or its branch alone."""

    def __init__(self, c: int, rate: float, sdpa: bool) -> None:
        super().__init__(c)
        self.inner = Attending(c, rate, sdpa)

    def forward(self, x: Any) -> Any:
        return self.inner(x) if self.hand is not None else checkpoint(self.inner, x, use_reentrant=False)


class Halved(Block):
    """The branch alone is checkpointed: the add stands outside."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Any) -> Any:
        if self.hand is not None:
            return self.connect("mlp", x, self.branch)
        return x + checkpoint(self.branch, x, use_reentrant=False)

    def branch(self, u: Tensor) -> Tensor:
        out: Tensor = self.drop(self.mlp(self.norm(u)))
        return out


STRUCTURES = {
    "block": Structure(partial(Checkpointed, rate=0.0, sdpa=False), (2,)),
    "block with attention": Structure(partial(Checkpointed, rate=0.0, sdpa=True), (2,)),
    "block with dropout": Structure(partial(Checkpointed, rate=0.25, sdpa=False), (2,)),
    "block with attention and dropout": Structure(partial(Checkpointed, rate=0.25, sdpa=True), (2,)),
    "branch with dropout": Structure(Halved),
}
