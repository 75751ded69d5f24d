"""What is spelt as something else, before and after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mhc_compile.passes import Results
from mhc_compile.passes.canonicalize import Canonicalize
from tests.nets.structures import C, ops, request, tokens
from tests.passes.canonicalize.respelling import Function, respelt

RESPELT = [
    pytest.param(
        lambda s, x: torch.add(x, x.exp(), alpha=2),
        ["exp", "add"],
        ["exp", "mul", "add"],
        id="add(x, x.exp(), alpha=2)",
    ),
    pytest.param(
        lambda s, x: x.sub(x.exp(), alpha=0.5), ["exp", "sub"], ["exp", "mul", "sub"], id="x.sub(x.exp(), alpha=0.5)"
    ),
    pytest.param(lambda s, x: sum([x.exp(), x]), ["exp", "add", "add"], ["exp", "add"], id="sum([x.exp(), x])"),
    pytest.param(
        lambda s, x: torch.stack([x.exp(), x]).sum(0),
        ["exp", "stack", "sum"],
        ["exp", "add"],
        id="stack([x.exp(), x]).sum(0)",
    ),
    pytest.param(
        lambda s, x: torch.stack([x, x.exp(), x.sin()], 1).sum(dim=1),
        ["exp", "sin", "stack", "sum"],
        ["exp", "sin", "stack", "sum", "add"],
        id="stack([x, x.exp(), x.sin()], 1).sum(dim=1)",
    ),
    pytest.param(
        lambda s, x: torch.sum(input=torch.stack(tensors=[x, x.exp(), x.sin()], dim=1), dim=1),
        ["exp", "sin", "stack", "sum"],
        ["exp", "sin", "stack", "sum", "add"],
        id="sum(input=stack(tensors=[x, x.exp(), x.sin()], dim=1), dim=1)",
    ),
    pytest.param(
        lambda s, x: torch.stack([x, x.exp()]).mean(0),
        ["exp", "stack", "mean"],
        ["exp", "add", "truediv"],
        id="stack([x, x.exp()]).mean(0)",
    ),
    pytest.param(lambda s, x: torch.add(input=x, other=x.exp()), ["exp", "add"], ["exp", "add"], id="add(input=x)"),
    pytest.param(
        lambda s, x: torch.add(x, other=x.exp(), alpha=2),
        ["exp", "add"],
        ["exp", "mul", "add"],
        id="add(other=, alpha=)",
    ),
    pytest.param(
        lambda s, x: x.mT.exp().mT,
        ["mT", "exp", "mT"] if torch.__version__ >= "2.14" else ["getattr", "exp", "getattr"],
        ["transpose", "exp", "transpose"],
        id="x.mT",
    ),
    pytest.param(
        lambda s, x: torch.ops.aten.mT(torch.ops.aten.mT(x).exp()),  # what torch 2.14 makes of x.mT
        ["mT", "exp", "mT"],
        ["transpose", "exp", "transpose"],
        id="aten.mT(x)",
    ),
    pytest.param(
        lambda s, x: torch.where(x > 0, input=x, other=x.exp()),
        ["gt", "exp", "where"],
        ["gt", "exp", "where"],
        id="where(x > 0, input=x, other=x.exp())",
    ),
    pytest.param(
        lambda s, x: torch.native_layer_norm(x, (C,), None, None, 1e-5)[0] + x,
        ["native_layer_norm", "getitem", "add"],
        ["layer_norm", "add"],
        id="native_layer_norm(x)[0] + x",
    ),
]


@pytest.mark.parametrize(("step", "before", "after"), RESPELT)
def test_respelt(step: Function, before: list[str], after: list[str]) -> None:
    was, now, error = respelt(step, tokens())
    assert (was, now) == (before, after)
    assert error < 1e-6


def seen(self: Any, x: Tensor) -> Tensor:
    h = x.exp()
    alias = h.view(-1)
    h.add_(other=x, alpha=2)
    return torch.stack([h, h.exp()]).sum(0) * alias.sum()


def changed_between(self: Any, x: Tensor) -> Tensor:
    h = x.exp()
    stack = torch.stack([h, h.exp()])
    h.view(-1).mul_(2.0)
    return stack.sum(0) * h


def test_sums_of_what_is_overwritten() -> None:
    """A sum that stays in place is spelt plainly as well, and what was overwritten before may be a term."""
    was, now, error = respelt(seen, tokens())
    assert was == ["exp", "view", "add", "exp", "stack", "sum", "sum", "mul"]
    assert now == ["exp", "view", "mul", "add", "exp", "add", "sum", "mul"]
    assert error < 1e-6
    was, now, error = respelt(changed_between, tokens())
    assert was == now
    assert error == 0


def test_a_zero_behind_what_is_overwritten_no_more() -> None:
    def step(_: Any, x: Tensor) -> Tensor:
        x = 0 + x + x.sin()
        x = x.clone().add_(x.exp())
        return 0 + x + x.tanh()

    _, now, error = respelt(step, tokens())
    assert now == ["sin", "add", "clone", "exp", "add", "tanh", "add"]
    assert error == 0


KEPT = [
    pytest.param(
        lambda s, x: torch.stack([x.exp(), x.sin()]).sum(0), id="stack([x.exp(), x.sin()]).sum(0)"
    ),  # neither reads the other
    pytest.param(lambda s, x: torch.stack([x, x.exp()]).sum(1), id="stack([x, x.exp()]).sum(1)"),  # another axis
    pytest.param(
        lambda s, x: torch.stack([x, x.exp()]).sum(0, keepdim=True), id="stack([x, x.exp()]).sum(0, keepdim=True)"
    ),
    pytest.param(lambda s, x: torch.stack([x, x]).sum(0), id="stack([x, x]).sum(0)"),
    pytest.param(
        lambda s, x: torch.native_layer_norm(x, (C,), None, None, 1e-5)[1] * F.layer_norm(x, (C,)),
        id="native_layer_norm(x)[1] * layer_norm(x)",
    ),
    pytest.param(lambda s, x: x + 0.5, id="x + 0.5"),
]


@pytest.mark.parametrize("step", KEPT)
def test_kept(step: Function) -> None:
    was, now, error = respelt(step, tokens())
    assert was == now
    assert error == 0


def test_sizes_that_one_node_holds() -> None:
    made = fx.Graph()
    x, y = made.placeholder("x"), made.placeholder("y")
    sizes = made.call_method("size", (y,))
    view = made.call_method("view", (x, sizes))
    made.output((view,))
    for node, held in {x: torch.empty(10, C), y: torch.empty(2, 5, C), sizes: torch.Size([2, 5, C])}.items():
        node.meta["example_value"] = held
    view.meta["example_value"] = torch.empty(2, 5, C)
    gm = fx.GraphModule(nn.Module(), made)
    assert ops(gm) == ["size", "view"]
    Canonicalize()(gm, request(), Results())
    assert ops(gm) == ["size", "getitem", "getitem", "getitem", "view"]
    gm.recompile()
    given = torch.randn(12, C)
    assert torch.equal(gm(given, torch.empty(3, 4, C))[0], given.view(3, 4, C))
