"""Names of sites: distinct by construction, the same in every run, and never a line's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.passes import Findings
from mhc_compile.passes.base import Spot
from mhc_compile.passes.find_residuals.naming import distinct
from tests.nets.structures import C, Layer, explain, found, names, tokens


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["f", "f_1", "f_2", "f_1_1", "g"]))))
def test_names_are_distinct(labels: list[tuple[str, str]]) -> None:
    made = distinct(labels)
    assert len(set(zip((owner for owner, _ in labels), made, strict=True))) == len(labels)
    for i, (label, name) in enumerate(zip(labels, made, strict=True)):
        assert name.startswith(label[1])
        assert (name == label[1]) == (label not in labels[:i])  # the first of a kind keeps its label


class Clash(nn.Module):
    """A module that is called twice beside one whose name is what its second call would be called."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.f_1 = nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.f(x).tanh()
        x = x + self.f(x).tanh()
        out: Tensor = x + self.f_1(x).tanh()
        return out


def test_every_site_has_parameters_of_its_own() -> None:
    model = Clash()
    report = mhc.upgrade(model, (tokens(),))
    assert names(report) == ["f", "f_2", "f_1"]
    run = torch.compile(model, backend="mhc", options={"compiler": "eager"})
    with torch.no_grad():
        for _, parameter in mhc.named_parameters(model):
            parameter.add_(torch.randn_like(parameter))
    run(tokens()).sin().mul(torch.randn(C)).mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for _, p in mhc.named_parameters(model))


STEPS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "proj_weight": lambda s, x: x @ s.proj.weight,
    "mlp_0_weight": lambda s, x: torch.einsum("btc,dc->btd", x, s.mlp[0].weight[:C]),
    "matmul": lambda s, x: x @ torch.ones(C, C),
    "proj": lambda s, x: s.proj(x).tanh(),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_owners_own_work_is_called_after_its_parameter_or_op(name: str) -> None:
    step = STEPS[name]
    assert names(explain(Layer(lambda s, x: 2 * plus(s, plus(s, x, step), step)), tokens())) == [name, f"{name}_1"]


def plus(layer: Any, x: Tensor, branch: Callable[[Any, Tensor], Tensor]) -> Tensor:
    return x + branch(layer, x)


class Swish(torch.autograd.Function):
    """One op with gradients; without them Dynamo looks into it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = x.sigmoid()
        return gradient * (gate + x * gate * (1 - gate))


def swish(self: Any, x: Tensor) -> Tensor:
    apply: Any = Swish.apply
    x = x + apply(self.proj(x))
    out: Tensor = x + apply(self.mlp(x))
    return out


def test_an_autograd_function_behind_the_branch_changes_no_name() -> None:
    with_gradients = names(explain(Layer(swish), tokens()))
    with torch.no_grad():
        assert names(explain(Layer(swish), tokens())) == with_gradients == ["proj", "mlp"]


def twice(self: Any, x: Tensor) -> Tensor:
    if self.training:
        x = x + self.proj(x * 0.5)
    x = x + self.proj(x)
    return x + self.mlp(x)


def spots(model: nn.Module, *args: Tensor) -> list[Spot]:
    return [residual.spot for residual in found(model, *args)[Findings].residuals]


def test_a_spot_does_not_depend_on_the_others() -> None:
    first, *rest = spots(Layer(twice), tokens())
    assert spots(Layer(twice).eval(), tokens()) == rest
    assert first.child == rest[0].child == "proj"


class DropPath(nn.Module):
    """Stochastic depth by a mask of the samples, which only training draws."""

    def __init__(self, spelling: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        return self.spelling(x, torch.empty(len(x), 1, 1).bernoulli_(0.9)) if self.training else x


@pytest.mark.parametrize(
    "spelling",
    [
        lambda x, mask: x * mask / 0.9,
        lambda x, mask: x / 0.9 * mask,
        lambda x, mask: x * (mask / 0.9),
        lambda x, mask: x.div(0.9) * (0.9 + torch.rand(len(x), 1, 1)).floor(),
        lambda x, mask: mask.div_(0.9) * x,
        lambda x, mask: torch.zeros_like(mask).add(mask) * x,
    ],
    ids=["product first", "quotient first", "mask alone", "floor", "mask in front", "made anew"],
)
def test_a_mask_that_only_training_draws_changes_no_spot(spelling: Callable[[Tensor, Tensor], Tensor]) -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = x + self.path(self.drop(self.proj(x)))
        out: Tensor = x + self.path(self.gamma * self.mlp(x))
        return out

    layer = Layer(step)
    layer.path = DropPath(spelling)
    assert names(explain(layer, tokens())) == names(explain(layer.eval(), tokens())) == ["proj", "mlp"]
    assert spots(layer.train(), tokens()) == spots(layer.eval(), tokens())


def test_a_spot_is_read_as_it_was_written() -> None:
    for spot in (*spots(Layer(twice), tokens()), Spot(3, "forward:1>add:2", "", 4)):
        assert Spot.parse(str(spot)) == spot
    assert Spot.parse("") is None


def test_calls_of_a_module_are_counted() -> None:
    layer = Layer(lambda s, x: x + s.proj(x))
    model = nn.Sequential(layer, layer, Layer(lambda s, x: x + s.proj(x)))
    assert [spot.call for spot in spots(model, tokens())] == [0, 1, 0]
