"""Every phase of a model, who moves it there, and what a graph without markers means in it."""

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
from mhc_compile.model.phase import Phase, close_first_call, phase_of
from tests.nets.small import Net, compiled, inputs, made, upgraded

ours = pytest.mark.filterwarnings("ignore::mhc_compile.MHCWarning")


class Broken(Net):
    """A graph break in the middle of the model."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        torch._dynamo.graph_break()
        out: Tensor = self.head(self.blocks[1](x))
        return out


def phases(model: nn.Module) -> tuple[Phase, Phase, Phase]:
    """Of the model, of a module in it and of one around it."""
    return phase_of(model), phase_of(model.get_submodule("blocks.0.mlp.0")), phase_of(nn.Sequential(model))


NOTHING = (Phase.NOT_PLANNED,) * 3
REMOVED = (Phase.REMOVED, Phase.REMOVED, Phase.NOT_PLANNED)
PLANNED = (Phase.PLANNED, Phase.PART_OF_PLANNED, Phase.HOLDS_SITES)


def messages(run: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(inputs())
    return [str(w.message) for w in caught if issubclass(w.category, mhc.MHCWarning)]


def test_what_is_removed_stays_so_until_the_next_upgrade() -> None:
    model = made()
    assert phases(model) == NOTHING
    for _ in range(2):
        mhc.upgrade(model, (inputs(),))
        assert phases(model) == PLANNED
        mhc.remove(model)
        assert phases(model) == REMOVED
        assert messages(compiled(model)) == []
        assert "mhc" not in dict(model.named_modules())


def test_restore_plans_and_a_failing_one_leaves_no_trace() -> None:
    state, model = upgraded().state_dict(), made()
    with pytest.raises(RuntimeError, match="head"):
        mhc.restore(model, {name: value for name, value in state.items() if not name.startswith("head")})
    assert phases(model) == NOTHING
    mhc.restore(model, state)
    assert phases(model) == PLANNED


@ours
def test_a_first_call_collects_until_markers_come_back() -> None:
    model = made()
    run = compiled(model)
    run(inputs())
    assert phases(model) == (Phase.COLLECTING, Phase.NOT_PLANNED, Phase.HOLDS_SITES)
    run(inputs())
    assert phase_of(model) is Phase.PLANNED


@ours
def test_all_graphs_of_a_first_call_are_collected() -> None:
    model = made(Broken)
    run = compiled(model)
    (first, second) = messages(run)
    assert "of 2 hyper-connections" in first
    assert "of 2 hyper-connections" in second
    assert phase_of(model) is Phase.COLLECTING
    assert messages(run) == []
    assert phase_of(model) is Phase.PLANNED


def test_only_a_first_call_can_be_closed() -> None:
    model = made()
    for module in (None, model):
        close_first_call(module)
        assert phase_of(module) is Phase.NOT_PLANNED


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
    before = phase_of(model)
    with mhc.plain(model):
        assert phase_of(model) is Phase.DISABLED
        assert messages(run) == []
        assert torch.equal(run(inputs()), expected)
    assert phase_of(model) is before
    assert len(mhc.upgrade(model).sites) == 4


def test_a_part_alone_may_be_disabled() -> None:
    model = upgraded()
    block = model.get_submodule("blocks.0")
    with mhc.plain(block):
        assert phase_of(block) is Phase.DISABLED
        assert phase_of(model) is Phase.PLANNED
    assert phase_of(block) is Phase.PART_OF_PLANNED


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copied", "pickled"]
)
def test_copies_keep_their_stage(again: Any) -> None:
    model = upgraded()
    assert phases(again(model)) == PLANNED
    assert phase_of(again(model.get_submodule("head"))) is Phase.PART_OF_PLANNED


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name)
def test_what_a_graph_without_markers_means(phase: Phase) -> None:
    assert phase.plans_graphs is (phase.name in ("NOT_PLANNED", "COLLECTING"))


def test_a_function_is_not_planned() -> None:
    first, second = made(), made(Net, seed=1)
    assert phase_of(None) is Phase.NOT_PLANNED
    with pytest.raises(FirstCallError, match="no module to keep the plan"):
        torch.compile(lambda x: first(x) + second(x), backend="mhc", options={"compiler": "eager"})(inputs())
    assert phases(first) == NOTHING
