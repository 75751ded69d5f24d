"""What autograd's graph tells: whether a site of a region had a part in a tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mhc_compile.backend.lineage import before_hooks, is_first, mark
from mhc_compile.model.plan_text import PlanText
from mhc_compile.model.sites import Flow

PLAN = PlanText("{}")
HERE = Flow(PLAN, region=1)


def fresh() -> Tensor:
    made: Tensor = nn.Linear(3, 3)(torch.randn(2, 3))
    return made


def behind(flow: Flow) -> Tensor:
    """A tensor that a site of some region had a part in."""
    carrier = fresh().sin()
    mark(carrier, flow)
    return carrier * 2 + fresh()


def test_parameters_and_constants_alone() -> None:
    assert is_first(fresh() + torch.randn(2, 3), HERE)


def test_behind_an_input_that_wants_a_gradient() -> None:
    """As audio models make of theirs, for activation checkpointing; a hidden state would have as many features."""
    assert is_first(nn.Linear(5, 3)(torch.randn(2, 5, requires_grad=True)), HERE)
    assert not is_first(nn.Linear(5, 3)(torch.randn(3, 5, requires_grad=True)), HERE)
    assert is_first(nn.Linear(5, 4)(torch.randn(3, 5, requires_grad=True)), HERE)
    assert not is_first(nn.Linear(5, 4)(torch.randn(3, 5, requires_grad=True)), HERE, axis=-2)


@pytest.mark.parametrize(
    ("flow", "first"),
    [
        (HERE, False),
        (Flow(PLAN, region=0), True),
        (Flow(PlanText("{}"), region=0), False),
        (Flow(region=0), False),
    ],
    ids=["its region", "another region", "another plan", "no plan"],
)
def test_behind_a_site(flow: Flow, first: bool) -> None:
    """What is of no plan, or of another one, may be of the same model: first calls make plans one by one."""
    assert is_first(behind(flow), HERE) is first
    assert not is_first(behind(flow), Flow())


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.detach(),
        lambda x: x.detach().requires_grad_(),
        lambda x: x.detach().requires_grad_() * 2 + fresh(),
        lambda x: x.clone(),
    ],
    ids=["detached", "a leaf", "behind a leaf", "a clone"],
)
def test_what_hides_a_site_is_not_first(make: Callable[[Tensor], Tensor]) -> None:
    assert not is_first(make(behind(HERE)), HERE)


def test_without_gradients_nothing_tells() -> None:
    with torch.no_grad():
        assert not is_first(fresh(), HERE)


def test_hooks_hide_no_carrier() -> None:
    """A module with a full backward hook hands on an alias of its input."""
    carrier = fresh().sin()
    mark(carrier, HERE)
    seen: list[Tensor] = []
    module = nn.Identity()
    module.register_full_backward_hook(lambda *_: None)
    module.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    module(carrier)
    assert seen[0] is not carrier
    assert before_hooks(seen[0]) is carrier
