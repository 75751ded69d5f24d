"""Sites in a row, with the user's checkpoints in other places: what the planner of recompute cuts into blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.nets.structures import Attention, C, mlp


class Chain(nn.Module):
    """Sites in a row; `wrap` runs a branch or a whole layer."""

    def __init__(self, sites: int = 3, post: bool = False) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in range(sites))
        self.layers = nn.ModuleList(mlp() for _ in range(sites))
        self.post = post

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(self.layers)):
            x = self.layer(i, x)
        return x.sin()

    def layer(self, i: int, x: Tensor) -> Tensor:
        norm, layer = self.norms[i], self.layers[i]
        out: Tensor = norm(x + self.branch(layer, x)) if self.post else x + self.branch(layer, norm(x))
        return out

    def branch(self, layer: nn.Module, u: Tensor) -> Any:
        return layer(u)


class Branches(Chain):
    """Every branch is checkpointed."""

    def branch(self, layer: nn.Module, u: Tensor) -> Any:
        return checkpoint(layer, u, use_reentrant=False)


class Middle(Chain):
    """The layers from the second to the last but one are checkpointed, adds and all."""

    def layer(self, i: int, x: Tensor) -> Tensor:
        if i in (0, len(self.layers) - 1):
            return super().layer(i, x)
        return checkpoint(super().layer, i, x, use_reentrant=False)


class Tower(nn.Module):
    """A decoder reads an encoder's end in each of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Chain(2), Chain(2)
        self.cross = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        memory = self.encoder(x)
        for i, cross in enumerate(self.cross):
            y = y + cross(y, memory)
            y = self.decoder.layer(i, y)
        return y.sin()
