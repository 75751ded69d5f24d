"""Regions: which sites share streams, where they begin and end."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import PlanMismatchError, SiteNotFoundError
from mhc_compile.passes import ANALYSIS
from mhc_compile.passes.base import Known, Plan
from mhc_compile.passes.graph import optable
from mhc_compile.passes.runner import run
from tests.nets import small
from tests.nets.structures import (
    Attention,
    C,
    Layer,
    Net,
    explain,
    graph,
    mark,
    marked,
    mlp,
    names,
    planned,
    reasons,
    tokens,
)

pytestmark = pytest.mark.filterwarnings("ignore:mhc finds nothing")


def test_a_change_of_the_feature_axis_ends_the_region() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv1d(C, C, 1) for _ in range(2))
            self.linears = nn.ModuleList(nn.Linear(C, C) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for conv in self.convs:
                x = x + conv(x)
            for linear in self.linears:
                x = x + linear(x)
            return x

    report = mhc.upgrade(Turned(), (torch.randn(2, C, C),))
    assert [(site.name, site.axis, site.region) for site in report.sites] == [
        ("convs_0", -2, 0), ("convs_1", -2, 0), ("linears_0", -1, 1), ("linears_1", -1, 1)
    ]  # fmt: skip


SPLITS: list[tuple[Any, list[int], bool]] = [
    ("layers.1.*", [0, 0, 1, 1, 1, 1], True),
    (("layers.1.*", "layers.2.attn"), [0, 0, 1, 1, 2, 2], False),
    ("*", [0] * 6, False),
]


@pytest.mark.core(1)
@pytest.mark.parametrize(("split", "regions", "apart"), SPLITS, ids=["one", "two", "all"])
def test_a_region_ends_where_the_config_says(split: Any, regions: list[int], apart: bool) -> None:
    """In one graph, and where the blocks have graphs of their own; then streams stop there, and nothing is refused."""

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(small.Block() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
                if apart:
                    torch._dynamo.graph_break()
            return x

    model, x = Blocks(), torch.randn(2, 4, small.WIDTH)
    report = mhc.upgrade(model, (x,), config=mhc.Config(split=split))
    assert [site.region for site in report.sites] == regions
    small.perturb(model)
    found = small.compiled(model, compiler="eager")(x)
    if apart:
        splits = [cut for cut in report.cuts if "split" in cut.reason]
        assert [cut.carries for cut in splits] == [False] * (regions[-1])
    y = x
    for region in range(regions[-1] + 1):  # each region by itself is a model of its own
        layers = [layer for i, layer in enumerate(model.layers) if regions[2 * i] == region]
        part = nn.Sequential(*(small.Block() for _ in layers))
        mhc.upgrade(part, (y,))
        state = {f"{i}.{name}": v for i, each in enumerate(layers) for name, v in each.state_dict().items()}
        part.load_state_dict(state, strict=False)
        y = small.compiled(part, compiler="eager")(y)
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-5)


def test_a_fork_continues_the_streams_on_both_sides() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        y = x + self.mlp(x)
        return (x + self.proj(x)) * y

    report = mhc.upgrade(Layer(step), (tokens(),))
    assert [(site.label, site.predecessor, site.region) for site in report.sites] == [
        ("attn", None, 0), ("mlp", "attn", 0), ("proj", "attn", 0)
    ]  # fmt: skip


def encoder(self: Any, x: Tensor) -> Tensor:
    x = x + self.attn(self.norm(x))
    return x + self.mlp(self.norm2(x))


def decoder(self: Any, x: Tensor, memory: Tensor) -> Tensor:
    x = x + self.attn(self.norm(x))
    x = x + self.cross(self.norm2(x), memory)
    return x + self.mlp(self.norm3(x))


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Net(encoder).layers, Net(decoder).layers
        self.norm = nn.LayerNorm(C)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.encoder:
            x = layer(x)
        memory = self.norm(x)
        for layer in self.decoder:
            y = layer(y, memory)
        return y


def test_encoder_and_decoder_are_two_regions() -> None:
    report = explain(Translator(), tokens(), tokens(length=3))
    assert [(region.sites, region.first, region.last) for region in report.regions] == [
        (4, "encoder.0.attn", "encoder.1.mlp"),
        (6, "decoder.0.attn", "decoder.1.mlp"),
    ]
    assert names(report)[4:7] == ["decoder.0.attn", "decoder.0.cross", "decoder.0.mlp"]
    assert reasons(report) == []


def test_one_module_called_many_times() -> None:
    layer = Layer(encoder)
    report = explain(nn.Sequential(layer, layer, layer), tokens())
    assert names(report) == ["0.attn", "0.mlp", "0.attn_1", "0.mlp_1", "0.attn_2", "0.mlp_2"]
    assert [site.k for site in report.sites] == list(range(6))


class Loops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each, self.same = nn.ModuleList(nn.Linear(C, C) for _ in range(3)), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        for f in self.each:
            x = x + f(x)
        for _ in range(2):
            x += self.same(x)
        return x


def test_loops_in_one_forward() -> None:
    assert names(explain(Loops(), tokens())) == ["each_0", "each_1", "each_2", "same", "same_1"]


class Biased(nn.Module):
    """T5: one table of position biases and one mask, added to the scores of every layer."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(depth))
        self.mlps = nn.ModuleList(mlp() for _ in range(depth))
        self.table = nn.Embedding(32, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        i = torch.arange(x.shape[1])
        bias = self.table(i[:, None] - i + 16).squeeze(-1)[None] + mask
        for attention, feedforward in zip(self.layers, self.mlps, strict=True):
            x = x + attention(x, None, bias)
            x = x + feedforward(x)
        return x


@pytest.mark.parametrize(("batch", "length"), [(1, C), (2, C), (1, 5)])
def test_a_bias_that_every_layer_adds_is_no_site(batch: int, length: int) -> None:
    report = explain(Biased(), tokens(batch, length), torch.zeros(batch, length, length))
    assert names(report) == [f"{part}_{i}" for i in range(3) for part in ("layers", "mlps")]
    assert Counter(reasons(report)) <= Counter({"no-skip": 4})
    assert not any(rejection.residual for rejection in report.rejections)


def test_a_single_site() -> None:
    report = explain(Layer(lambda self, x: self.proj(x + self.mlp(x))), tokens())
    assert names(report) == []
    (rejection,) = report.rejections
    assert (rejection.reason, rejection.residual) == ("single-site-region", True)
    assert "cannot mix" in rejection.message


@pytest.mark.core(2)
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"exclude": "*.attn"}, ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]),
        ({"include": "*.attn"}, ["layers.0.attn", "layers.1.attn", "layers.2.attn"]),
        ({"include": ("*.0.*", "*.2.*"), "exclude": "*.0.mlp"}, ["layers.0.attn", "layers.2.attn", "layers.2.mlp"]),
        ({"every": 4}, ["layers.0.attn", "layers.2.attn"]),
        ({"exclude": "*"}, []),
    ],
    ids=["exclude attn", "include attn", "include and exclude", "every fourth", "nothing"],
)
def test_what_is_left_out_is_lifted_so_the_region_goes_on(options: dict[str, Any], kept: list[str]) -> None:
    model = Net(encoder, 3)
    report = mhc.upgrade(model, (tokens(),), config=mhc.Config(**options))
    assert names(report) == kept
    assert Counter(reasons(report)) == Counter({"excluded": 6 - len(kept)})
    assert all(rejection.residual for rejection in report.rejections)
    assert len(report.regions) == (1 if kept else 0)
    assert [site.predecessor for site in report.sites] == [None, *kept[:-1]][: len(kept)]


def test_a_graph_must_hold_the_sites_that_its_markers_name() -> None:
    gm = marked(graph(Net(encoder), tokens()))
    add = [node for node in gm.graph.nodes if optable.is_add(node)][-1]
    mark(gm, "gone", gm.graph.find_nodes(op="placeholder")[-4:], add, entry=False)
    with pytest.raises(SiteNotFoundError, match=r"'layers.1.gone' is in the plan, .* its add is not in this graph"):
        run(ANALYSIS, gm, planned())


def test_streams_that_should_come_from_elsewhere_must_have_a_way_in() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = self.proj(x)
        return x + self.mlp(x)

    gm = marked(graph(Layer(step), tokens()), entry=False)
    with pytest.raises(PlanMismatchError, match="'mlp' were planned to come from the site before it"):
        run(ANALYSIS, gm, planned())


def shared(step: Any, **asked: Any) -> list[bool]:
    """Of each site of a layer, whether its graph serves layers with which streams start and others alike."""
    gm = marked(graph(Layer(step), tokens()))
    order = [*gm.graph.find_nodes(op="placeholder")]
    request = dataclasses.replace(planned(), carries=True, known=lambda phi: Known(phi.name, 0, order.index(phi)))
    sites = run(ANALYSIS, gm, dataclasses.replace(request, **asked))[Plan].sites
    assert all(site.carried for site in sites if site.shared)
    return [site.shared for site in sites]


def test_a_graph_serves_all_layers_if_nothing_stands_in_front_of_its_first_site() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = x + self.proj(x)
        return x + self.mlp(x)

    assert shared(step) == [True, False]
    assert shared(step, whole=True) == [False, False]
    assert shared(step, carries=False) == [False, False]
    assert shared(step, known=lambda phi: None) == [False, False]


def test_a_graph_serves_no_others_if_its_streams_start_behind_an_op() -> None:
    def lifted(self: Any, x: Tensor) -> Tensor:
        x = 2 * x
        return x + self.mlp(x)

    def made(self: Any, x: Tensor) -> Tensor:
        x = self.proj(x)
        return x + self.mlp(x)

    def twice(self: Any, x: Tensor) -> Tensor:
        one, two = x + self.mlp(x), x + self.proj(x)
        return one * two

    assert shared(lifted) == [False]
    assert shared(made) == [False]
    assert shared(twice) == [False, False]


def test_a_sum_of_a_dtensor_that_is_overwritten_is_left_alone(mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor

    def overwriting(self: Any, x: Any) -> Tensor:
        x += self.proj(x.redistribute(placements=[Replicate()]))
        return self.mlp(x.redistribute(placements=[Replicate()])) + x

    x = distribute_tensor(torch.randn(2, 5, C), mesh, [Shard(1)])
    report = explain(distribute_module(Layer(overwriting), mesh), x)
    residual = [rejection.reason for rejection in report.rejections if rejection.residual]
    assert residual == ["in-place", "overwritten-dtensor"]
