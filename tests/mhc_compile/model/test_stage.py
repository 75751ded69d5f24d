"""Every stage of a model, who moves it there, and what a graph without markers means in it."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import FirstCallError
from mhc_compile.model.stage import Stage, close_first_call, stage_of
from tests.nets.small import Net, compiled, inputs, made, upgraded

ours = pytest.mark.filterwarnings("ignore::mhc_compile.MHCWarning")


class Broken(Net):
    """A graph break in the middle of the model."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        torch._dynamo.graph_break()
        out: Tensor = self.head(self.blocks[1](x))
        return out


def stages(model: nn.Module) -> tuple[Stage, Stage, Stage]:
    """Of the model, of a module in it and of one around it."""
    return stage_of(model), stage_of(model.get_submodule("blocks.0.mlp.0")), stage_of(nn.Sequential(model))


NOTHING = (Stage.NOT_PLANNED,) * 3
REMOVED = (Stage.REMOVED, Stage.REMOVED, Stage.NOT_PLANNED)
PLANNED = (Stage.PLANNED, Stage.PART_OF_PLANNED, Stage.HOLDS_SITES)


def messages(run: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(inputs())
    return [str(w.message) for w in caught if issubclass(w.category, mhc.MHCWarning)]


def test_what_is_removed_stays_so_until_the_next_upgrade() -> None:
    model = made()
    assert stages(model) == NOTHING
    for _ in range(2):
        mhc.upgrade(model, (inputs(),))
        assert stages(model) == PLANNED
        mhc.remove(model)
        assert stages(model) == REMOVED
        assert messages(compiled(model)) == []
        assert "mhc" not in dict(model.named_modules())


def test_restore_plans_and_a_failing_one_leaves_no_trace() -> None:
    state, model = upgraded().state_dict(), made()
    with pytest.raises(RuntimeError, match="head"):
        mhc.restore(model, {name: value for name, value in state.items() if not name.startswith("head")})
    assert stages(model) == NOTHING
    mhc.restore(model, state)
    assert stages(model) == PLANNED


@ours
def test_a_first_call_collects_until_markers_come_back() -> None:
    model = made()
    run = compiled(model)
    run(inputs())
    assert stages(model) == (Stage.COLLECTING, Stage.NOT_PLANNED, Stage.HOLDS_SITES)
    run(inputs())
    assert stage_of(model) is Stage.PLANNED


@ours
def test_all_graphs_of_a_first_call_are_collected() -> None:
    model = made(Broken)
    run = compiled(model)
    (first, second) = messages(run)
    assert "of 2 hyper-connections" in first
    assert "of 2 hyper-connections" in second
    assert stage_of(model) is Stage.COLLECTING
    assert messages(run) == []
    assert stage_of(model) is Stage.PLANNED


def test_only_a_first_call_can_be_closed() -> None:
    model = made()
    for module in (None, model):
        close_first_call(module)
        assert stage_of(module) is Stage.NOT_PLANNED


@pytest.mark.parametrize("first", ["upgrade", "first call"])
def test_plain_disables_until_it_ends(first: str) -> None:
    """Also between the first call and the second, where the graph would otherwise be planned once more."""
    model = made()
    expected = model(inputs())
    run = compiled(model)
    if first == "upgrade":
        mhc.upgrade(model, (inputs(),))
    else:
        assert len(messages(run)) == 1
    before = stage_of(model)
    with mhc.plain(model):
        assert stage_of(model) is Stage.DISABLED
        assert messages(run) == []
        assert torch.equal(run(inputs()), expected)
    assert stage_of(model) is before
    assert len(mhc.upgrade(model).sites) == 4


def test_a_part_alone_may_be_disabled() -> None:
    model = upgraded()
    block = model.get_submodule("blocks.0")
    with mhc.plain(block):
        assert stage_of(block) is Stage.DISABLED
        assert stage_of(model) is Stage.PLANNED
    assert stage_of(block) is Stage.PART_OF_PLANNED


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copied", "pickled"]
)
def test_copies_keep_their_stage(again: Any) -> None:
    model = upgraded()
    assert stages(again(model)) == PLANNED
    assert stage_of(again(model.get_submodule("head"))) is Stage.PART_OF_PLANNED


@pytest.mark.parametrize("stage", Stage, ids=lambda stage: stage.name)
def test_what_a_graph_without_markers_means(stage: Stage) -> None:
    assert stage.plans_graphs is (stage.name in ("NOT_PLANNED", "COLLECTING"))


def test_a_function_is_not_planned() -> None:
    first, second = made(), made(Net, seed=1)
    assert stage_of(None) is Stage.NOT_PLANNED
    with pytest.raises(FirstCallError, match="no module to keep the plan"):
        torch.compile(lambda x: first(x) + second(x), backend="mhc", options={"compiler": "eager"})(inputs())
    assert stages(first) == NOTHING
