"""Skips and branches that parameters gate, behind a layer's output or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets.generator.structure import Block, Structure

Pair = tuple[Tensor, Tensor]


class Gate(Block):
    """`x * a + f(x) * b` with a and b made of a parameter."""

    def __init__(self, c: int, gate: str, behind: bool) -> None:
        super().__init__(c)
        shape, self.pair = GATES[gate]
        size = [c if s == -1 else 2 * c if s == -2 else s for s in shape]
        self.gate, self.behind = nn.Parameter(torch.rand(size) - 0.3), behind

    def forward(self, x: Any) -> Any:
        a, b = self.pair(self.gate)
        if self.hand is not None:
            return self.connect("f", x, lambda u: self.layer(u) * b, scale=a)
        if self.behind:
            h = self.layer(x) * b
            return x * a + h
        return x * a + self.layer(x) * b


def _sigmoid(g: Tensor) -> Pair:
    a = torch.sigmoid(g)
    return a, 1 - a


# the shape of the parameter, -1 for the features and -2 for twice as many; what scales skip and branch
GATES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Pair]]] = {
    "scalar sigmoid": ((), _sigmoid),
    "sigmoid of one": ((1,), _sigmoid),
    "vector sigmoid": ((-1,), _sigmoid),
    "sigmoid of [1, 1, C]": ((1, 1, -1), _sigmoid),
    "chunked": ((-2,), lambda g: (g.chunk(2)[0].sigmoid(), g.chunk(2)[1])),
    "split and exp": ((-2,), lambda g: (g[: len(g) // 2].exp(), g[len(g) // 2 :])),
    "softplus": ((-1,), lambda g: (F.softplus(g), g)),
    "clamp": ((), lambda g: (g.clamp(0.1, 0.9), 1 - g)),
    "softmax of rows": ((2, -1), lambda g: (g.softmax(0)[0], g.softmax(0)[1])),
    "softmax of numbers": ((2,), lambda g: (g.softmax(0)[0], 1 - g.softmax(0)[0])),
    "weight @ weight": ((-1, -1), lambda g: ((g @ g).mean(0), (g @ g).mean(1))),
    "norm of a weight": ((-1, -1), lambda g: (g.norm(dim=1), 1 / (1 + g.norm()))),
    "one plus tanh": ((-1,), lambda g: (1 + g.tanh(), 1 - g.tanh())),
}
STRUCTURES = {
    f"{gate}, {place}": Structure(partial(Gate, gate=gate, behind=behind))
    for gate in GATES
    for place, behind in {"skip first": False, "skip behind": True}.items()
}
