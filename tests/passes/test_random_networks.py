"""Random networks of structures whose sites are known, with adds between them that are none."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections import Counter
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.backend import mhc as backend
from tests.passes import networks as nets
from tests.passes.streams import Hand, Part, apart, by_hand, load, near, perturbed, run

EXAMPLES = int(os.environ.get("MHC_EXAMPLES", "25"))


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
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A network as hypothesis draws and prints it."""

    regions: tuple[tuple[type[nets.Block], ...], ...]
    width: int
    batch: int
    length: int
    streams: int
    kind: tuple[str, str]

    def sites(self) -> list[str]:
        """Every connection's name, region by region; a region of one is left alone."""
        regions = [
            [f"regions.{r}.{b}.{label}" for b, block in enumerate(blocks) for label in BLOCKS[block][0]]
            for r, blocks in enumerate(self.regions)
        ]
        return [name for region in regions if len(region) > 1 for name in region]

    def rejections(self) -> Counter[str]:
        blocks = [block for region in self.regions for block in region]
        alone = [region for region in self.regions if len([s for block in region for s in BLOCKS[block][0]]) == 1]
        return Counter(reason for block in blocks for reason in BLOCKS[block][1]) + Counter(
            {"single-site-region": len(alone)}
        )


class Net(Part):
    """Regions with a projection between them, which ends one and starts the next."""

    def __init__(self, drawing: Drawing) -> None:
        super().__init__()
        c = drawing.width
        self.regions = nn.ModuleList(nn.ModuleList(block(c) for block in blocks) for blocks in drawing.regions)
        self.cuts = nn.ModuleList(nn.Linear(c, c) for _ in drawing.regions)
        self.alone = [len([s for block in blocks for s in BLOCKS[block][0]]) == 1 for blocks in drawing.regions]

    def forward(self, x: Tensor) -> Tensor:
        for region, cut, alone in zip(self.regions, self.cuts, self.alone, strict=True):
            streams = x if alone else self.enter(x)
            for block in region:  # type: ignore[attr-defined]
                streams = block(streams)
            x = cut(self.leave(streams))
        return x


regions = st.lists(st.lists(st.sampled_from(list(BLOCKS)), min_size=1, max_size=3).map(tuple), min_size=1, max_size=2)
drawings = st.builds(
    Drawing,
    regions=regions.map(tuple),
    width=st.integers(4, 8),
    batch=st.integers(1, 3),
    length=st.integers(2, 4),
    streams=st.integers(2, 4),
    kind=st.sampled_from([("mhc", "sinkhorn"), ("mhc", "identity"), ("hc", "sinkhorn")]),
).filter(lambda drawing: bool(drawing.sites()))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawings)
def test_random_network(drawing: Drawing) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = Net(drawing).double()
    args = [torch.randn(drawing.batch, drawing.length, drawing.width, dtype=torch.float64)]
    config = mhc.Config(streams=drawing.streams, connection=drawing.kind[0], projection=drawing.kind[1])
    model = copy.deepcopy(plain)

    report = mhc.upgrade(model, args, config=config)
    assert [site.name for site in report.sites] == drawing.sites()
    assert Counter(rejection.reason for rejection in report.rejections) == drawing.rejections()

    compiled = torch.compile(model, backend=backend, options={"compiler": "eager"})
    own = {name: p for name, p in model.named_parameters() if ".mhc." not in name}
    before = run(plain, dict(plain.named_parameters()), args)
    near(run(compiled, own, args), before, 1e-5)

    parameters = perturbed(report, config)
    load(model, parameters)
    hand = by_hand(plain, Hand(config.connection, config.projection, config.streams, parameters))
    expected = run(hand, dict(hand.named_parameters()) | parameters, args)
    near(run(compiled, dict(model.named_parameters()), args), expected, 1e-9)
    assert apart(before, expected) > 1e-4
