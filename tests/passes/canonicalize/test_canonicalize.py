"""One spelling of each add; what is overwritten without being read again is not overwritten."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mhc_compile.passes import Results
from mhc_compile.passes.canonicalize import Canonicalize
from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.effects import schemas
from tests.nets.structures import Layer, Step, graph, ops, request, tokens


def plus(_: Any, x: Tensor) -> Tensor:
    return torch.add(x, x.sin()).add(x.cos()) + x  # -> add add add


def iadd(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    y += x
    return y


def add_method(_: Any, x: Tensor) -> Tensor:
    return x.sin().add_(x)


def read_under_its_own_name(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    y.add_(x)
    y.mul_(2.0)
    return y.cos() * y


def aten(_: Any, x: Tensor) -> Tensor:
    return torch.ops.aten.add_.Tensor(torch.ops.aten.add.Tensor(x, x.sin()), x)


def activations(_: Any, x: Tensor) -> Tensor:
    y = F.relu(x.sin(), inplace=True)
    y = F.hardtanh(y, -0.1, 0.1, True)
    return F.dropout(F.elu(y, 1.0, True) * 1.0, 0.5, False, True)


def broadcast(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    y += x[:, :1]
    y /= 2.0
    return y


def view_before(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    half = y[..., :2].cos()
    y += x
    return y[..., :2] * half


def functions(_: Any, x: Tensor) -> Tensor:
    y = torch.relu_(x.sin())
    y = F.relu_(y)
    y **= 2
    return y.__isub__(x).__iadd__(x)


def into_itself(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    torch.add(y, x, out=y)
    return y.cos() * y


def copy_before(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    z = y.clone()
    z += x
    return z * y


def view_behind(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    y.add_(x)
    return y.view(-1)


CHANGED: list[Step] = [
    functions,
    into_itself,
    copy_before,
    view_behind,
    plus,
    iadd,
    add_method,
    read_under_its_own_name,
    aten,
    activations,
    broadcast,
    view_before,
]


def of_the_caller(_: Any, x: Tensor) -> Tensor:
    x += 1.0 * x.sin()
    return x


def of_the_caller_through_a_view(_: Any, x: Tensor) -> Tensor:
    y = x.view(-1, x.shape[-1])
    y += y.sin()
    return y


def of_the_model(self: Any, x: Tensor) -> Tensor:
    weight = self.gamma.detach()
    weight += x[0, 0]
    return weight * x


def view_read_afterwards(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    half = y[..., :2]
    y += x
    return half


def base_read_afterwards(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    z = y.transpose(1, 2).transpose(1, 2)
    z += x
    return y


def other_dtype(_: Any, x: Tensor) -> Tensor:
    y = x.half()
    y += x
    return y


def item(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    y[:, 1:] += x[:, 1:]
    return y


def no_other_spelling(_: Any, x: Tensor) -> Tensor:
    return x.sin().zero_() + x


def read_by_another_spelling(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    before = y.mT
    y += x
    return before


def read_as_data(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    before = torch.swapaxes(input=y.data, axis0=0, axis1=1).ravel()
    y.mul_(x)
    return y[0, 0] * before.sum()


def handed_on_by_dropout(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    z = F.dropout(y, 0.5, training=False)
    z += x
    return y * z


def a_copy_of_zero(_: Any, x: Tensor) -> Tensor:
    y = x.sin()
    half = y[:, 1:]
    z = 0 + y
    z.view(-1).mul_(2)
    return half * z[:, 1:] * y[:, 1:]


def into_another(_: Any, x: Tensor) -> Tensor:
    y, z = x.sin(), x.cos()
    held = z.mT
    torch.add(y, x, out=z)
    return y * held.mT


def without_gradients(self: Any, x: Tensor) -> Tensor:
    y = self.proj(x)
    with torch.no_grad():
        y += 1.0
        y.clamp_(-1.0, 1.0)
    return y * x


KEPT: list[Step] = [
    read_by_another_spelling, read_as_data, handed_on_by_dropout, a_copy_of_zero, into_another, without_gradients,
    of_the_caller, of_the_caller_through_a_view, of_the_model, view_read_afterwards, base_read_afterwards, other_dtype,
    item, no_other_spelling,
]  # fmt: skip


def respelt(step: Step) -> tuple[Any, Any]:
    """The graph before and after."""
    before = graph(Layer(step), tokens())
    after = copy.deepcopy(before)
    Canonicalize()(after, request(), Results())
    after.graph.lint()
    after.recompile()
    return before, after


def same(before: Any, after: Any) -> None:
    """Both compute the same and leave their inputs the same."""
    inputs = [p.meta["example_value"] for p in before.graph.find_nodes(op="placeholder")]
    values = [torch.randn(t.shape, generator=torch.Generator().manual_seed(i)) for i, t in enumerate(inputs)]
    ours, theirs = [
        [v.clone().requires_grad_(t.requires_grad) for v, t in zip(values, inputs, strict=True)] for _ in range(2)
    ]
    made, wanted = (*after(*ours), *ours), (*before(*theirs), *theirs)
    for a, b in zip(made, wanted, strict=True):
        assert torch.equal(a, b)
    if wanted[0].requires_grad:
        upstream = torch.randn(wanted[0].shape, generator=torch.Generator().manual_seed(9))
        for tensors in (made, wanted):
            tensors[0].backward(upstream)
        for a, b in zip(ours, theirs, strict=True):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None and b.grad is not None:
                assert torch.equal(a.grad, b.grad)


def inplace(gm: Any) -> int:
    return sum(bool(schemas.changed(node)) for node in gm.graph.nodes)


@pytest.mark.parametrize("step", CHANGED, ids=lambda step: step.__name__)
def test_nothing_is_overwritten(step: Step) -> None:
    before, after = respelt(step)
    assert inplace(after) == 0
    assert ops(before) == ops(after)
    assert all(str(n.target) == "<built-in function add>" for n in after.graph.nodes if optable.is_add(n))
    same(before, after)


@pytest.mark.parametrize("step", KEPT, ids=lambda step: step.__name__)
def test_overwriting_that_is_part_of_the_function_stays(step: Step) -> None:
    before, after = respelt(step)
    assert inplace(after) == inplace(before) > 0
    same(before, after)
