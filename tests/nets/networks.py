"""Networks with every structure that the passes widen, written once (see `streams`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.nets.streams import Part
from tests.nets.structures import Attention, mlp

C = 6


class Block(Part):
    """The parts of a block; a subclass says how they are connected."""

    def __init__(self, c: int = C) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(c) for _ in range(3))
        self.attn, self.cross, self.mlp, self.proj = Attention(c), Attention(c), mlp(c), nn.Linear(c, c)
        self.gamma = nn.Parameter(torch.linspace(-1, 1, c))


class PreNorm(Block):
    def forward(self, x: Any) -> Any:
        x = self.connect("attn", x, lambda u: self.attn(self.norm1(u)))
        return self.connect("mlp", x, lambda u: self.mlp(self.norm2(u)))


class PostNorm(Block):
    def forward(self, x: Any) -> Any:
        x = self.lift(self.norm1, self.connect("attn", x, self.attn))
        return self.lift(self.norm2, self.connect("mlp", x, self.mlp))


class Sandwich(Block):
    def forward(self, x: Any) -> Any:
        return self.connect("mlp", x, lambda u: self.norm2(self.mlp(self.norm1(u))))


class Parallel(Block):
    def forward(self, x: Any) -> Any:
        return self.connect("attn", x, lambda u: self.attn(self.norm1(u)), lambda u: self.mlp(self.norm1(u)))


class LayerScale(Block):
    def forward(self, x: Any) -> Any:
        return self.connect("mlp", x, lambda u: self.gamma * self.mlp(self.norm1(u)))


class ScaledCarrier(Block):
    def forward(self, x: Any) -> Any:
        x = self.connect("mlp", x, lambda u: self.mlp(self.norm1(u)), scale=0.8)
        return self.lift(lambda s: 1.25 * s, x)


class Subtracted(Block):
    """Half of the branch is taken away: N-BEATS' backcast, by way of `sub` with a factor."""

    def forward(self, x: Any) -> Any:
        if self.hand is None:
            return torch.sub(x, self.mlp(self.norm1(x)), alpha=0.5)
        return self.connect("mlp", x, lambda u: 0.5 * self.mlp(self.norm1(u)), sign=-1)


class LearnedCarrier(Block):
    """A parameter scales the skip."""

    def forward(self, x: Any) -> Any:
        return self.connect("mlp", x, lambda u: self.mlp(self.norm1(u)), scale=self.gamma)


class Stacked(Block):
    """The sum is a stack that is summed, skip included."""

    def forward(self, x: Any) -> Any:
        if self.hand is None:
            return torch.stack([self.mlp(x), x, self.attn(x)]).sum(0)
        return self.connect("mlp", x, lambda u: self.mlp(u) + self.attn(u))


class Overwritten(Block):
    """The branch's tensor becomes the sum."""

    def forward(self, x: Any) -> Any:
        if self.hand is None:
            f = self.attn(self.norm1(x))
            f += x
            g = self.mlp(self.norm2(f))
            return g.add_(f)
        x = self.connect("attn", x, lambda u: self.attn(self.norm1(u)))
        return self.connect("mlp", x, lambda u: self.mlp(self.norm2(u)))


class Moved(Block):
    """Tokens move between connections: another order, one batch of them all, and back."""

    def forward(self, x: Any) -> Any:
        shape = self.leave(x).shape
        x = self.connect("mlp", x, lambda u: self.mlp(self.norm1(u)))
        x = self.lift(lambda s: s.transpose(0, 1).reshape(-1, s.shape[-1]), x)
        x = self.connect("proj", x, lambda u: self.proj(self.norm2(u)))
        x = self.lift(lambda s: s.view(shape[1], shape[0], -1).permute(1, 0, 2), x)
        return self.connect("attn", x, lambda u: self.attn(self.norm3(u)))


class Joint(Part):
    """Two trunks side by side whose branches read each other: image and text tokens under one attention."""

    def __init__(self, c: int = C) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(c), Attention(c)
        self.left, self.right = mlp(c), mlp(c)

    def forward(self, x: Any, y: Any) -> tuple[Any, Any]:
        if self.hand is None:
            a, b = self._attend(x, y)
            x, y = x + a, y + b
        else:
            u, write_x = self.split("attn", x)
            v, write_y = self.split("attn", y)
            a, b = self._attend(u, v)
            x, y = write_x(a), write_y(b)
        return self.connect("left", x, self.left), self.connect("right", y, self.right)

    def _attend(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        both = self.attn(self.norm(torch.cat([x, y], 1)))
        return both[:, : x.shape[1]], both[:, x.shape[1] :]


class TwoTrunks(Part):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Joint() for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.enter(x), self.enter(y)
        for block in self.blocks:
            a, b = block(a, b)
        return self.leave(a), self.leave(b)


class Gated(Block):
    """What stands on the trunk is made with a gate, which reads the trunk like any other reader."""

    def forward(self, x: Any) -> Any:
        x = self.connect("mlp", x, self.mlp)
        gate = self.proj(self.leave(x)).sigmoid()
        x = self.lift(lambda s: s * gate + s.mean(-1, keepdim=True), x)
        x = self.lift(
            lambda s: 2 * s / (s.norm(2, dim=2, keepdim=True) + s.amax((2,), True) + s.var(dim=2, keepdim=True)), x
        )
        context = self.leave(x).mean(1, keepdim=True).softmax(-1)
        return self.connect("attn", self.lift(lambda s: s + context, x), self.attn)


class Cross(Block):
    def forward(self, x: Any, memory: Tensor) -> Any:
        x = self.connect("attn", x, lambda u: self.attn(self.norm1(u)))
        x = self.connect("cross", x, lambda u: self.cross(self.norm2(u), memory))
        return self.connect("mlp", x, lambda u: self.mlp(self.norm3(u)))


class ConvBlock(Part):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.Conv2d(c, c, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(c), nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        x = self.connect("second", x, lambda u: self.second(self.act(self.norm(self.first(u)))))
        return self.lift(self.act, x)


class Trunk(Part):
    """Blocks in one region; beside the output, what an outside reader sees between them."""

    def __init__(self, block: type[Part] = PreNorm, depth: int = 2, axis: int = -1, c: int = C) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(c) for _ in range(depth))
        self.axis = axis

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        streams, seen = self.enter(x, self.axis), []
        for block in self.blocks:
            streams = block(streams)
            seen.append(self.leave(streams).sin())
        return self.leave(streams), torch.stack(seen).sum(0)


class Shared(Part):
    """One block, called three times: each call is a site with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.block = PreNorm()

    def forward(self, x: Tensor) -> Tensor:
        streams = self.enter(x)
        for _ in range(3):
            streams = self.block(streams)
        return self.leave(streams)


class EncoderDecoder(Part):
    """Two regions; the second one's branches read what leaves the first."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(PreNorm() for _ in range(1))
        self.decoder = nn.ModuleList(Cross() for _ in range(1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        streams = self.enter(x)
        for block in self.encoder:
            streams = block(streams)
        memory, streams = self.leave(streams), self.enter(y)
        for block in self.decoder:
            streams = block(streams, memory)
        return self.leave(streams)


class Fork(Part):
    """Two towers on one trunk: its streams flow into both, and the towers' sums meet as plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.left, self.right = PreNorm(), PreNorm(), PostNorm()

    def forward(self, x: Tensor) -> Tensor:
        streams = self.trunk(self.enter(x))
        left, right = self.leave(self.left(streams)), self.leave(self.right(streams))
        return left * right


class Turned(Part):
    """Features second, then features last: one region ends in the sum that starts the other."""

    def __init__(self, c: int = C) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(c, c, 3, padding=1) for _ in range(2))
        self.linears = nn.ModuleList(nn.Linear(c, c) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        streams = self.enter(x, -2)
        for i, conv in enumerate(self.convs):
            streams = self.connect(f"convs_{i}", streams, conv)
        streams = self.enter(self.leave(streams))
        for i, linear in enumerate(self.linears):
            streams = self.connect(f"linears_{i}", streams, linear)
        return self.leave(streams)


KINDS = [("mhc", "sinkhorn"), ("mhc", "identity"), ("hc", "sinkhorn")]

TOKENS = (2, 3, C)

IMAGE = (2, 4, 3, 5)


# a network, the shapes of its arguments, and how many sites it has
Make = Callable[[], Part]

NETS: dict[str, tuple[Make, Sequence[tuple[int, ...]], int]] = {
    "pre-norm": (lambda: Trunk(), [TOKENS], 4),
    "post-norm": (lambda: Trunk(PostNorm), [TOKENS], 4),
    "sandwich": (lambda: Trunk(Sandwich), [TOKENS], 2),
    "parallel": (lambda: Trunk(Parallel), [TOKENS], 2),
    "layer-scale": (lambda: Trunk(LayerScale, 3), [TOKENS], 3),
    "scaled-carrier": (lambda: Trunk(ScaledCarrier), [TOKENS], 2),
    "subtracted": (lambda: Trunk(Subtracted), [TOKENS], 2),
    "learned-carrier": (lambda: Trunk(LearnedCarrier), [TOKENS], 2),
    "stacked": (lambda: Trunk(Stacked), [TOKENS], 2),
    "overwritten": (lambda: Trunk(Overwritten), [TOKENS], 4),
    "moved": (lambda: Trunk(Moved), [TOKENS], 6),
    "two-trunks": (TwoTrunks, [TOKENS, (2, 5, C)], 8),
    "gated": (lambda: Trunk(Gated), [TOKENS], 4),
    "shared": (Shared, [TOKENS], 6),
    "encoder-decoder": (EncoderDecoder, [TOKENS, (2, 4, C)], 5),
    "fork": (Fork, [TOKENS], 6),
    "two-axes": (Turned, [(2, C, C)], 4),
    "channels-first": (lambda: Trunk(ConvBlock, 3, axis=-3, c=4), [IMAGE], 3),
}
