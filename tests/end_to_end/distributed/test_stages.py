"""What a pipeline refuses: every mistake is found before a step, with rank, site and remedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import mhc_compile as mhc
from mhc_compile.distributed.stages import boundaries
from mhc_compile.errors import NotUpgradedError, PlanMismatchError
from mhc_compile.plan.model_plan import ModelPlan
from tests.end_to_end.distributed.staged import Staged, parts
from tests.nets.small import inputs, made, upgraded

Parts = dict[int, nn.Module]
pytestmark = pytest.mark.xdist_group("stages")  # they share a model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return upgraded(Staged, 4)


def plan_of(model: Any) -> ModelPlan:
    return ModelPlan.from_json(model.mhc.text)


def missing(stages: Parts, whole: nn.Module) -> None:
    del stages[1]


def lost(stages: Parts, whole: nn.Module) -> None:
    del stages[1].get_submodule("blocks")._modules["3"]


def twice(stages: Parts, whole: nn.Module) -> None:
    stages[1] = parts(whole, (1, 3))[1]


def swapped(stages: Parts, whole: nn.Module) -> None:
    stages[0], stages[1] = stages[1], stages[0]


def another(stages: Parts, whole: nn.Module) -> None:
    stages[1] = parts(upgraded(Staged, 4, config=mhc.Config(streams=2)), (2, 2))[1]


def deeper(stages: Parts, whole: nn.Module) -> None:
    stages[1] = parts(upgraded(Staged, 5), (2, 3))[1]


def skipped(stages: Parts, whole: nn.Module) -> None:
    stages.update(parts(whole, (2, 0)))
    stages[2] = parts(whole, (2, 2))[1]


@pytest.mark.parametrize(
    ("mistake", "count", "text"),
    [
        (missing, 2, r"2 stages has each once, but the processes have \[0\]\. .*as group"),
        (lost, 2, r"site 'blocks\.3\.attn' of the plan is in no stage"),
        (twice, 2, r"site 'blocks\.1\.attn' is in stage 0 \(rank 0\) and stage 1 \(rank 0\)"),
        (swapped, 2, r"'blocks\.2\.attn' continues the streams of site 'blocks\.1\.mlp', from stage 1 to an earlier"),
        (another, 2, r"stage 0 \(rank 0\) and stage 1 \(rank 0\) were upgraded with different options"),
        (deeper, 2, r"different plans: they differ at site 'blocks\.0\.attn'"),
        (skipped, 3, r"from stage 0 to stage 2, past stages that hold no site"),
    ],
    ids=["missing", "lost", "twice", "swapped", "another", "deeper", "skipped"],
)
def test_mistakes(model: nn.Module, mistake: Callable[[Parts, nn.Module], None], count: int, text: str) -> None:
    stages = parts(model, (2, 2))
    mistake(stages, model)
    with pytest.raises(PlanMismatchError, match=text):
        mhc.connect_stages(stages, count)


def test_nobody_has_a_plan() -> None:
    with pytest.raises(NotUpgradedError, match="no part of the pipeline holds a plan"):
        mhc.connect_stages(parts(made(Staged, 2), (1, 1)), 2)


def test_a_refused_pipeline_is_left_as_it_was(model: nn.Module) -> None:
    stages = parts(model, (2, 1))
    before = [type(stage) for stage in stages.values()]
    with pytest.raises(PlanMismatchError):
        mhc.connect_stages(stages, 2)
    assert [type(stage) for stage in stages.values()] == before
    roots: list[Any] = [stage.get_submodule("mhc") for stage in stages.values()]
    assert all(root.kept is None for root in roots)


def test_two_tensors_of_streams_cannot_cross_one_boundary(model: nn.Module) -> None:
    """As where an encoder's and a decoder's streams run side by side."""
    plan = plan_of(model)
    sites = [
        dataclasses.replace(site, predecessor="blocks.0.attn") if site.name == "blocks.2.mlp" else site
        for site in plan.sites
    ]
    stages: Mapping[str, int] = {site.name: int(site.name > "blocks.2") for site in plan.sites}
    assert list(boundaries(plan, stages)) == [0]
    with pytest.raises(
        PlanMismatchError, match=r"sites 'blocks\.0\.attn', 'blocks\.1\.mlp' would all cross the boundary"
    ):
        boundaries(dataclasses.replace(plan, sites=tuple(sites)), stages)


def test_a_stage_holds_its_own_sites(model: nn.Module) -> None:
    """In checkpoints, and for the optimizer; gains are those of a whole model."""
    stages = parts(model, (2, 2))
    mhc.connect_stages(stages, 2)
    with pytest.raises(NotUpgradedError, match="part of an upgraded model"):
        mhc.gains(stages[0], (inputs(),))
    names = [name for name, _ in mhc.named_parameters(stages[1])]
    assert {name.partition(".mhc")[0] for name in names} == {"blocks.2", "blocks.3"}
    whole = upgraded(Staged, 4, moved=True).state_dict()
    kept = {name: value for name, value in whole.items() if name in stages[1].state_dict()}
    stages[1].load_state_dict(kept)
    assert torch.equal(stages[1].state_dict()["blocks.2.mhc.attn.phi"], whole["blocks.2.mhc.attn.phi"])
