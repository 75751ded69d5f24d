"""Networks whose own forward checkpoints parts of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.nets.small import Net


class Checkpointed(Net):
    """Each block is checkpointed while `active`."""

    active = True
    options: ClassVar[dict[str, Any]] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False, **self.options) if self.active else block(x)
        out: Tensor = self.head(x)
        return out


class Halves(Net):
    """Only the branches are checkpointed: the adds stand outside."""

    active = True

    def forward(self, x: Tensor) -> Tensor:
        def run(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
            return checkpoint(f, x, use_reentrant=False) if self.active else f(x)

        x = self.stem(x)
        for block in self.blocks:
            x = x + run(block.get_submodule("attn"), block.get_submodule("norm1")(x))
            x = x + run(block.get_submodule("mlp"), block.get_submodule("norm2")(x))
        out: Tensor = self.head(x)
        return out


class Nested(Net):
    """A checkpoint in a checkpoint, which takes a keyword and returns several values."""

    active = True

    def forward(self, x: Tensor) -> Tensor:
        def pair(x: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
            x = self.run(self.blocks[1], self.blocks[0](x))
            return x, x * scale

        x, scaled = self.run(pair, self.stem(x), scale=2.0)
        out: Tensor = self.head(self.run(self.blocks[2], x)) + scaled.mean()
        return out

    def run(self, f: Callable[..., Any], x: Tensor, **kwargs: Any) -> Any:
        return checkpoint(f, x, use_reentrant=False, **kwargs) if self.active else f(x, **kwargs)
