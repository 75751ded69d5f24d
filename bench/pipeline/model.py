"""The model that is cut: a stem, pre-norm blocks of attention and MLP, and a head."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

HEADS = 4
VOCABULARY = 256


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int) -> None:
        """Create both branches."""
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, length, width]` to the same shape."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Model(nn.Module):
    """A stage is a copy without some of the layers."""

    def __init__(self, width: int, layers: int) -> None:
        """Create so many blocks."""
        super().__init__()
        torch.manual_seed(0)
        self.embed: nn.Module | None = nn.Embedding(VOCABULARY, width)
        self.head: nn.Module | None = nn.Linear(width, VOCABULARY)
        self.blocks = nn.ModuleDict({str(i): Block(width) for i in range(layers)})

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens, or hidden states, to logits, or hidden states."""
        x = self.embed(x) if self.embed is not None else x
        for block in self.blocks.values():
            x = block(x)
        return self.head(x) if self.head is not None else x


def cut(model: Model, stage: int, stages: int) -> Model:
    """Return a copy with the layers of one of so many equal stages."""
    part, each = copy.deepcopy(model), len(model.blocks) // stages
    for name in list(part.blocks):
        if int(name) // each != stage:
            del part.blocks[name]
    if stage > 0:
        part.embed = None
    if stage < stages - 1:
        part.head = None
    return part


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy."""
    return functional.cross_entropy(logits.flatten(0, -2), target.flatten())


def data(args: Any) -> tuple[Tensor, Tensor]:
    """Return random tokens of all microbatches, and what they are to become."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (args.microbatches * args.batch, args.length + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
