"""The plan of a whole model: linking graphs, numbering, and its text form."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.backend import mhc as backend
from mhc_compile.capture.model_run import run_captured
from mhc_compile.capture.owners import Stack
from mhc_compile.errors import PlanMismatchError
from mhc_compile.plan.drafting import draw, number, plan_graph
from mhc_compile.plan.model_plan import VERSION, ModelPlan, SitePlan, options_that_differ
from tests.nets.small import SITES, Block, Net, PostBlock, Separate, inputs, made, upgraded


class Half(nn.Module):
    """One connection."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Halves(nn.Module):
    """Blocks of one site each, a graph break after the first, and two ways to connect them."""

    def __init__(self, cut: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.cut = Half(), Half(), cut

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        x = self.cut(x)
        out: Tensor = self.second(x)
        return out


class OneForward(nn.Module):
    """Two connections in one forward, with a graph break between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        torch._dynamo.graph_break()
        return x + self.second(x)


def drawn(model: nn.Module, config: mhc.Config | None = None) -> tuple[ModelPlan, list[str], list[str]]:
    draft = draw(run_captured(model, (inputs(),), {}), model, config or mhc.Config())
    return (
        draft.plan,
        [cut.name for cut in draft.cuts if cut.carries],
        [rejection.reason for rejection in draft.rejections],
    )


def test_sites_are_numbered_by_region() -> None:
    plan, links, rejected = drawn(made(Net, 3))
    wanted = [f"blocks.{i}.{site}" for i in range(3) for site in SITES]
    assert [site.name for site in plan.sites] == wanted
    assert [(site.region, site.k, site.length) for site in plan.sites] == [(0, k, 6) for k in range(6)]
    assert [site.predecessor for site in plan.sites] == [None, *wanted[:-1]]
    assert {site.shape for site in plan.sites} == {(3, 5, 16)}
    assert {site.channels for site in plan.sites} == {16}
    assert links == rejected == []


@pytest.mark.parametrize("block", [Block, PostBlock])
def test_regions_go_on_across_graph_breaks(block: type[nn.Module]) -> None:
    whole, _, _ = drawn(made(Net, 3, block))
    cut, links, _ = drawn(made(Separate, 3, block))
    assert [site.identity() for site in cut.sites] == [site.identity() for site in whole.sites]
    assert links == [f"blocks.{i}.mlp -> blocks.{i + 1}.attn" for i in range(2)]


def test_a_site_alone_in_its_graph_is_not_alone_in_the_model() -> None:
    plan, links, rejected = drawn(Halves(nn.Identity()))
    assert [site.name for site in plan.sites] == ["first.branch", "second.branch"]
    assert (links, rejected) == (["first.branch -> second.branch"], [])


def test_graphs_that_do_not_meet() -> None:
    plan, links, rejected = drawn(Halves(nn.Linear(8, 8)))
    assert plan.sites == ()
    assert (links, rejected) == ([], ["single-site-region"] * 2)


def test_a_forward_with_a_break_is_left_alone() -> None:
    """Dynamo compiles it apart from the markers in front of it, so its sites would have no parameters."""
    plan, links, rejected = drawn(OneForward())
    assert (plan.sites, links, rejected) == ((), [], ["broken-forward"] * 2)


def test_what_the_config_leaves_out() -> None:
    plan, links, rejected = drawn(made(Separate, 2), mhc.Config(exclude=("*.attn",)))
    assert [site.name for site in plan.sites] == ["blocks.0.mlp", "blocks.1.mlp"]
    assert links == ["blocks.0.mlp -> blocks.1.mlp"]
    assert rejected == ["excluded"] * 2


def test_without_the_tensors_graphs_are_planned_one_by_one() -> None:
    model, config = made(Separate, 2), mhc.Config()
    captured = run_captured(model, (inputs(),), {})
    draft = number([plan_graph(graph.gm, config, Stack.of(model, graph.root)) for graph in captured.graphs], config)
    assert draft.cuts == ()
    assert [site.region for site in draft.plan.sites] == [0, 0, 1, 1]


@pytest.fixture
def plan() -> ModelPlan:
    return drawn(made(Net, 2, PostBlock), mhc.Config(streams=3, sinkhorn_iters=7))[0]


def test_text_and_back(plan: ModelPlan) -> None:
    again = ModelPlan.from_json(plan.to_json())
    assert again.sites == plan.sites
    assert again.config.function() == plan.config.function()
    assert again.to_json() == plan.to_json()


def test_identity_is_neither_line_nor_batch(plan: ModelPlan) -> None:
    moved = [
        dataclasses.replace(site, source="other.py:1", shape=(9, 9, 16), kind="?", lifts=()) for site in plan.sites
    ]
    assert [site.identity() for site in moved] == [site.identity() for site in plan.sites]
    wider = dataclasses.replace(plan.sites[0], shape=(3, 5, 32))
    assert wider.identity() != plan.sites[0].identity()


def test_another_format_is_refused(plan: ModelPlan) -> None:
    text = json.dumps(json.loads(plan.to_json()) | {"version": VERSION + 1})
    with pytest.raises(PlanMismatchError, match=rf"has format {VERSION + 1}, this mhc_compile reads {VERSION}"):
        ModelPlan.from_json(text)


def test_joining_plans(plan: ModelPlan) -> None:
    def renamed(site: SitePlan) -> SitePlan:
        return dataclasses.replace(site, name=f"other.{site.name}")

    other = ModelPlan(plan.config, (plan.sites[0], *(renamed(site) for site in plan.sites)))
    joined = plan.joined(other)
    assert [site.name for site in joined.sites] == [s.name for s in plan.sites] + [
        f"other.{s.name}" for s in plan.sites
    ]
    assert [site.region for site in joined.sites] == [0] * 4 + [1] * 4
    assert ModelPlan(plan.config, ()).joined(plan).sites == plan.sites


def test_options_that_differ() -> None:
    assert options_that_differ({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "d": 4}) == ["b"]


def test_cut_equals_whole(moved: bool) -> None:
    whole, cut = (upgraded(make, 2, moved=moved) for make in (Net, Separate))
    assert whole.state_dict().keys() == cut.state_dict().keys()
    x = inputs()
    ours, theirs = (torch.compile(model, backend=backend, options={"compiler": "eager"}) for model in (cut, whole))
    torch.testing.assert_close(ours(x), theirs(x))
    for model in (ours, theirs):
        model(x).square().sum().backward()
    for (name, p), q in zip(cut.named_parameters(), whole.parameters(), strict=True):
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, q.grad, msg=name)
