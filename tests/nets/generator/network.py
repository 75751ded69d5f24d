"""A network as it is drawn, and as it is built."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.nets.generator.families import STRUCTURES
from tests.nets.generator.hand import Placed
from tests.nets.streams import Part

KINDS = (("mhc", "sinkhorn"), ("mhc", "sinkhorn"), ("mhc", "identity"), ("hc", "sinkhorn"))
TAILS = ("kept", "view", "as_strided", "turned")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A network and what is done with it; all of it follows from the number.

    Attributes:
        number: the seed.
        structures: "family/name" of every piece, in order.
        tail: what reads the last region: nothing, or what can tell how its result lies in memory. "turned" has tokens
            first in between.
        use: what is done with the upgraded network (see `uses`).
        training: whether it is planned in training.
        compiler: what runs the rewritten graph; checkpoints are one under "aot_eager" only.
        kernels: "cpp" or "triton" (in its interpreter), where it runs in float32 by kernels; else "".
    """

    number: int
    structures: tuple[str, ...]
    width: int
    batch: int
    length: int
    streams: int
    kind: tuple[str, str]
    tail: str
    use: str
    training: bool
    compiler: str = "eager"
    kernels: str = ""

    @property
    def pictures(self) -> bool:
        """Whether features stand second."""
        return STRUCTURES[self.structures[0]].channels_first

    def shape(self, length: int) -> tuple[int, ...]:
        """The shape of the input for a number of tokens."""
        return (self.batch, self.width, length, 3) if self.pictures else (self.batch, length, self.width)


class Net(Part):
    """A layer, pieces on its output, and a tail; it can leave pieces out, and stop early."""

    def __init__(self, drawing: Drawing) -> None:
        super().__init__()
        c, self.pictures, self.tail = drawing.width, drawing.pictures, drawing.tail
        self.stem: nn.Module = nn.Conv2d(c, c, 1) if self.pictures else nn.Linear(c, c)
        self.pieces = nn.ModuleList(STRUCTURES[name].make(c) for name in drawing.structures)
        ends = [i for i, name in enumerate(drawing.structures) if STRUCTURES[name].is_none]
        self.cuts = nn.ModuleDict({str(i): nn.Linear(c, c) for i in ends})
        self.left_out: frozenset[int] = frozenset()
        self.depth = len(self.pieces)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.hand, Placed):
            self.hand.start()
        notes, axis = [x.sin().mean()], -3 if self.pictures else -1
        x = self.stem(x)
        streams = self.enter(x.transpose(0, 1) if "turned" in self.tail else x, axis)
        for i, piece in enumerate(self.pieces):
            if i in self.left_out:
                continue
            if i == self.depth:
                break
            if str(i) in self.cuts:  # no residual connection: plain tensors
                streams = self.enter(self.cuts[str(i)](piece(self.leave(streams))), axis)
                continue
            made: Any = piece(streams)
            streams, *seen = made if isinstance(made, tuple) else (made,)
            notes += seen
        return self._tail(self.leave(streams)), torch.stack(notes).sum(0)

    def _tail(self, y: Tensor) -> Tensor:
        if self.tail != "kept" and self.hand is not None:  # by hand it may lie anyhow
            y = y.transpose(0, 1).contiguous().transpose(0, 1) if self.tail == "turned" else y.contiguous()
        if self.tail == "view":
            return y.view(y.shape[0], -1)
        if self.tail == "as_strided":
            return y.as_strided((y.numel() // 2, 2), (2, 1))
        return y.transpose(0, 1).view(y.shape[1], -1) if self.tail == "turned" else y


def draw(number: int, names: Sequence[str], uses: Sequence[str], leads: Sequence[str] = ()) -> Drawing:
    """Draw a network: every structure (or every one of `leads`) leads in turn, and sure connections stand around it."""
    rng = random.Random(number)
    leads = leads or names
    lead = leads[number % len(leads)]
    pictures = STRUCTURES[lead].channels_first
    sure = [name for name in names if STRUCTURES[name].channels_first == pictures and 0 not in STRUCTURES[name].sites]
    home = [name for name in sure if name.startswith("images/" if pictures else "common/")]
    if STRUCTURES[lead].is_none:  # a region on either side
        structures = [*rng.choices(home, k=2), lead, *rng.choices(sure, k=2)]
    else:
        structures = [lead, rng.choice(home), rng.choice(sure)][: rng.choice((2, 3, 3))]
        rng.shuffle(structures)
    fitting = [use for use in uses if fits(use, structures)]
    return Drawing(
        number=number,
        structures=tuple(structures),
        width=rng.choice((6, 8)),
        batch=rng.choice((2, 3)),
        length=rng.choice((2, 3, 4)),
        streams=rng.choice((2, 3, 4)),
        kind=rng.choice(KINDS),
        tail=rng.choice([tail for tail in TAILS if tail != "turned" or not pictures]),
        use=rng.choice(fitting),
        training=rng.random() < 0.4,
        compiler="aot_eager" if lead.startswith("checkpoints/") else rng.choice(("eager", "eager", "aot_eager")),
    )


def fits(use: str, structures: Sequence[str]) -> bool:
    """Tell whether a use means something to a network of these structures."""
    if use in ("more iterations", "fewer iterations"):
        return any(STRUCTURES[name].loops for name in structures)
    return True
