"""Random networks of structures whose sites are known, with adds between them that are none."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.nets import networks as nets
from tests.nets.spellings import LearnedGate, Spelt
from tests.nets.streams import Part

EXAMPLES = int(os.environ.get("MHC_EXAMPLES", "5"))  # networks in all: three of five rewritten, one cut, one twice


def networks(share: int) -> settings:
    """Settings for a share of the examples; the same ones every time, unless their number is asked for."""
    known = "MHC_EXAMPLES" not in os.environ
    checks = list(HealthCheck)
    return settings(max_examples=EXAMPLES * share // 5, deadline=None, derandomize=known, suppress_health_check=checks)


class Decoys(nets.Block):
    """Inside the branch: a LoRA delta, GELU's cubic, tokens plus their mean."""

    def forward(self, x: Any) -> Any:
        return self.connect("mlp", x, lambda u: self.mlp(self._decoys(self.norm1(u))))

    def _decoys(self, u: Tensor) -> Tensor:
        v = self.proj(u) + self.attn.v(self.attn.q(u))
        v = v * (1 + torch.tanh(v + 0.044715 * v**3))
        return v + v.mean(1, keepdim=True).expand_as(v)


class Position(nets.Block):
    """A learned position, added to the trunk in front of the block."""

    def forward(self, x: Any) -> Any:
        like = self.leave(x)
        x = self.lift(lambda s: s + self.gamma.expand(like.shape), x)
        return self.connect("mlp", x, lambda u: self.mlp(self.norm1(u)))


class Query(nets.Block):
    """Queries get a position again, and a bias that every layer's scores share."""

    def forward(self, x: Any) -> Any:
        return self.connect("attn", x, lambda u: self.attn(self.norm1(u) + self.gamma.expand(u.shape), u))


class StateSpace(nets.Block):
    """A recurrence, and what passes by it: `y + D u`."""

    def forward(self, x: Any) -> Any:
        return self.connect("proj", x, self._scan)

    def _scan(self, x: Tensor) -> Tensor:
        u = self.mlp(x)
        y = self.attn(u).cumsum(1) + self.gamma * u
        return self.proj(y * self.cross.q(x).sigmoid())


class Quantiser(nets.Block):
    """What two codebooks leave over, and what they add up to."""

    def forward(self, x: Any) -> Any:
        return self.connect("mlp", x, lambda u: self.mlp(self._quantise(u)))

    def _quantise(self, u: Tensor) -> Tensor:
        rest, total = self.norm1(u), torch.zeros_like(u)
        for layer in (self.proj, self.attn):
            step = layer(rest)
            rest, total = rest - step, total + step
        code = rest.mean(-1).sigmoid().round().long()
        return total + torch.nn.functional.embedding(code, self.proj.weight)


class Context(nets.Block):
    """Inside the branch, a residual over fewer tokens, and one whose skip has a layer of its own."""

    def forward(self, x: Any) -> Any:
        return self.connect("attn", x, lambda u: self.attn(self._mix(self.norm1(u))))

    def _mix(self, u: Tensor) -> Tensor:
        u = u + self.cross.q(u.mean(1, keepdim=True))
        return self.proj(u) + self.mlp(u)


class Inverse(nets.Block):
    """Inside the branch, an inverse by iteration and a gated sum."""

    def forward(self, x: Any) -> Any:
        return self.connect("mlp", x, lambda u: self.mlp(self._gate(self._solve(self.norm1(u)))))

    def _solve(self, u: Tensor) -> Tensor:
        gram = 0.1 * self.proj(u).tanh() @ u.mT
        x = gram.mT
        for _ in range(2):
            x = x + x @ (0.5 * gram @ x)
        return u * x.sum(-1, keepdim=True).sigmoid()

    def _gate(self, u: Tensor) -> Tensor:
        gate = self.proj(u).sigmoid()
        return gate * u + (1 - gate) * self.attn(u)


# block -> labels of its sites, reasons of its other adds
BLOCKS: dict[type[nets.Block], tuple[tuple[str, ...], tuple[str, ...]]] = {
    nets.PreNorm: (("attn", "mlp"), ()),
    nets.PostNorm: (("attn", "mlp"), ()),
    nets.Sandwich: (("mlp",), ()),
    nets.Parallel: (("attn",), ()),
    nets.LayerScale: (("mlp",), ()),
    nets.ScaledCarrier: (("mlp",), ()),
    Decoys: (("mlp",), ("no-skip", "pointwise-branch", "pointwise-branch")),
    Position: (("mlp",), ("no-skip",)),
    Query: (("attn",), ("no-skip",)),
    StateSpace: (("proj",), ("skip-scaled",)),
    Quantiser: (("mlp",), ("shared-branch", "shared-branch", "no-skip", "no-skip", "no-skip")),
    Context: (("attn",), ("broadcast", "projection-shortcut")),
    Inverse: (("mlp",), ("recurrence", "recurrence", "inside-branch")),
    nets.Subtracted: (("mlp",), ()),
    Spelt: (("mlp", "attn", "cross", "proj"), ()),
    nets.LearnedCarrier: (("mlp",), ()),
    LearnedGate: (("mlp",), ()),
    nets.Stacked: (("mlp",), ()),
    nets.Overwritten: (("attn", "mlp"), ()),
    nets.Moved: (("mlp", "proj", "attn"), ()),
}
LEARNED = (nets.LearnedCarrier, LearnedGate)  # parameters scale the skip


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A network as hypothesis draws and prints it."""

    regions: tuple[tuple[type[nets.Block], ...], ...]
    width: int
    batch: int
    length: int
    streams: int
    kind: tuple[str, str]
    shared: bool = False
    readers: bool = False

    def calls(self) -> list[list[tuple[int, type[nets.Block]]]]:
        """Which block each region calls, in order: a shared one comes back at the end."""
        regions = [list(enumerate(blocks)) for blocks in self.regions]
        return [[*region, region[0]] for region in regions] if self.shared else regions

    def sites(self) -> list[str]:
        """Every connection's name, region by region; a region of one is left alone."""
        regions = [
            [
                f"regions.{r}.{b}.{label}" + "_1" * (i >= len(blocks))
                for i, (b, block) in enumerate(calls)
                for label in BLOCKS[block][0]
            ]
            for r, (calls, blocks) in enumerate(zip(self.calls(), self.regions, strict=True))
        ]
        return [name for region in regions if len(region) > 1 for name in region]

    def is_alone(self, region: tuple[type[nets.Block], ...]) -> bool:
        """Whether a region has one site only."""
        return not self.shared and len([site for block in region for site in BLOCKS[block][0]]) == 1

    def rejections(self) -> Counter[str]:
        blocks = [block for calls in self.calls() for _, block in calls]
        alone = [region for region in self.regions if self.is_alone(region)]
        reasons = ["skip-scaled" if region[0] in LEARNED else "single-site-region" for region in alone]
        return Counter([*reasons, *(reason for block in blocks for reason in BLOCKS[block][1])])


class Net(Part):
    """Regions with a projection between them, which ends one and starts the next."""

    def __init__(self, drawing: Drawing) -> None:
        super().__init__()
        c = drawing.width
        self.regions = nn.ModuleList(nn.ModuleList(block(c) for block in blocks) for blocks in drawing.regions)
        self.cuts = nn.ModuleList(nn.Linear(c, c) for _ in drawing.regions)
        self.alone = [drawing.is_alone(region) for region in drawing.regions]
        self.readers = drawing.readers
        self.calls = [[b for b, _ in calls] for calls in drawing.calls()]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = [x.mean()]  # what readers outside of the branches see
        for region, cut, alone, calls in zip(self.regions, self.cuts, self.alone, self.calls, strict=True):
            streams = x if alone else self.enter(x)
            for call in calls:
                streams = region[call](streams)  # type: ignore[index]
                if self.readers:
                    seen.append(self.leave(streams).sin().mean())
            x = cut(self.leave(streams))
        return x, torch.stack(seen).sum(0)


regions = st.lists(st.lists(st.sampled_from(list(BLOCKS)), min_size=1, max_size=3).map(tuple), min_size=1, max_size=2)


drawings = st.builds(
    Drawing,
    regions=regions.map(tuple),
    width=st.integers(4, 8),
    batch=st.integers(1, 3),
    length=st.integers(2, 4),
    streams=st.integers(2, 4),
    kind=st.sampled_from([("mhc", "sinkhorn"), ("mhc", "identity"), ("hc", "sinkhorn")]),
    shared=st.booleans(),
    readers=st.booleans(),
).filter(lambda drawing: bool(drawing.sites()))
