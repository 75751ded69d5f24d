"""Names, kinds and feature axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhc_compile.passes import ANALYSIS, Findings, Residual
from mhc_compile.passes.runner import run
from tests.nets.structures import C, Layer, Step, explain, graph, names, request, tokens

pytestmark = pytest.mark.filterwarnings("ignore:mhc finds nothing")


class Of(nn.Module):
    """A module whose forward is a function of it and x."""

    def __init__(self, step: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.step = step
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, x)


class Halving(torch.autograd.Function):
    """A function with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / 2


halved: Callable[[Tensor], Tensor] = Halving.apply


def only(model: nn.Module, x: Tensor) -> Residual:
    (residual,) = run(ANALYSIS, graph(model, x), request())[Findings].residuals
    return residual


def plus(f: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda self, x: x + f(self, x)


AXES: list[tuple[nn.Module, tuple[int, ...], int]] = [
    (Of(plus(lambda s, x: s.f(x)), f=nn.Linear(C, C)), (3, C), -1),
    (Of(plus(lambda s, x: s.f(x)), f=nn.Linear(C, C)), (2, 3, 4, C), -1),
    (Of(plus(lambda s, x: s.f(s.n(x))), f=nn.Linear(C, C), n=nn.LayerNorm(C)), (2, 3, C), -1),
    (Of(plus(lambda s, x: s.f(s.n(x))), f=nn.Linear(C, C), n=nn.RMSNorm(C)), (2, 3, C), -1),
    (Of(plus(lambda s, x: s.f(x)), f=nn.Conv1d(C, C, 3, padding=1)), (2, C, 5), -2),
    (Of(plus(lambda s, x: s.f(x)), f=nn.Conv2d(C, C, 3, padding=1)), (2, C, 5, 4), -3),
    (Of(plus(lambda s, x: s.f(x)), f=nn.Conv3d(C, C, 3, padding=1)), (2, C, 3, 4, 2), -4),
    (Of(plus(lambda s, x: s.f(s.n(x))), f=nn.Conv2d(C, C, 1), n=nn.BatchNorm2d(C)), (2, C, 5, 4), -3),
    (Of(plus(lambda s, x: s.f(s.n(x))), f=nn.Conv2d(C, C, 1), n=nn.GroupNorm(2, C)), (2, C, 5, 4), -3),
    (Of(plus(lambda s, x: s.f(s.n(x))), f=nn.Linear(C, C), n=nn.BatchNorm1d(C)), (3, C), -1),
    (Of(plus(lambda s, x: s.f(F.relu(x) * 2)), f=nn.Conv2d(C, C, 1)), (2, C, 5, 4), -3),
    (Of(plus(lambda s, x: torch.einsum("bsd,de->bse", x, s.f.weight)), f=nn.Linear(C, C)), (2, 3, C), -1),
    (Of(plus(lambda s, x: s.f(halved(x))), f=nn.Conv2d(C, C, 1)), (2, C, 5, 4), -3),
    (Of(plus(lambda s, x: s.f(torch.cat(x.chunk(2, 1)[::-1], 1)).tanh()), f=nn.Conv2d(C, C, 1)), (2, C, 5, 4), -3),
    (Of(plus(lambda s, x: s.f(x * torch.rsqrt(x.pow(2).mean(-1, True)))), f=nn.Linear(C, C)), (2, 3, C), -1),
]


@pytest.mark.parametrize(("model", "shape", "axis"), AXES, ids=lambda v: str(v) if isinstance(v, tuple) else "")
def test_feature_axis(model: nn.Module, shape: tuple[int, ...], axis: int) -> None:
    assert only(model, torch.randn(shape)).axis == axis


def test_an_axis_that_is_merged_with_others_tells_nothing() -> None:
    model = Of(plus(lambda s, x: s.f(x.flatten(1)).view(x.shape)), f=nn.Linear(5 * C, 5 * C))
    report = explain(model, torch.randn(2, 5, C))
    assert [r.reason for r in report.rejections] == ["feature-axis"]
    assert report.rejections[0].residual


def kind(step: Step) -> str:
    return only(Layer(step), tokens()).kind


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        pytest.param(lambda s, x: x + s.mlp(x), "plain", id="x + mlp(x)"),
        pytest.param(lambda s, x: x + s.mlp(s.norm(x)), "pre-norm", id="x + mlp(norm(x))"),
        pytest.param(lambda s, x: s.norm(x + s.mlp(x)), "post-norm", id="norm(x + mlp(x))"),
        pytest.param(lambda s, x: x + s.norm2(s.mlp(s.norm(x))), "sandwich", id="x + norm2(mlp(norm(x)))"),
        pytest.param(
            lambda s, x: x + s.drop(s.norm2(s.mlp(s.norm(x)))), "sandwich", id="x + drop(norm2(mlp(norm(x))))"
        ),
        pytest.param(lambda s, x: x + s.mlp(x) + s.proj(x), "parallel", id="x + mlp(x) + proj(x)"),
        pytest.param(
            lambda s, x: x + s.mlp(s.norm(x)) + s.proj(s.norm(x)),
            "parallel pre-norm",
            id="x + mlp(norm(x)) + proj(norm(x))",
        ),
        pytest.param(lambda s, x: x + 0.3 * s.mlp(x), "scaled", id="x + 0.3 * mlp(x)"),
        pytest.param(
            lambda s, x: x + s.drop(s.mlp(s.norm(x)) * s.gamma), "scaled pre-norm", id="x + drop(mlp(norm(x)) * gamma)"
        ),
        pytest.param(lambda s, x: s.norm(x + s.gamma * s.mlp(x)), "scaled post-norm", id="norm(x + gamma * mlp(x))"),
        pytest.param(
            lambda s, x: x + s.gamma * s.mlp(s.norm(x)) + s.proj(x),
            "parallel scaled pre-norm",
            id="x + gamma * mlp(norm(x)) + proj(x)",
        ),
    ],
)
def test_kind(step: Step, expected: str) -> None:
    assert kind(step) == expected


class HandMadeNorm(nn.Module):
    """A norm whose name, not its ops, says so."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def test_a_norm_of_the_users_own() -> None:
    model = Of(plus(lambda s, x: s.f(s.n(x))), f=nn.Linear(C, C), n=HandMadeNorm())
    assert only(model, tokens()).kind == "pre-norm"


def chain(*steps: Step) -> list[str]:
    """Names of the sites of a model, where several make a region."""

    def forward(self: Any, x: Tensor) -> Tensor:
        for step in steps:
            x = step(self, x)
        return x

    parts = {"mlp": nn.Linear(C, C), "list": nn.ModuleList(nn.Linear(C, C) for _ in range(2)), "norm": nn.LayerNorm(C)}
    parts["inner"] = Of(lambda s, x: s.deep(x), deep=nn.Sequential(nn.Linear(C, C), nn.ReLU()))
    return names(explain(Of(forward, **parts), tokens()))


def test_labels_are_the_submodules_that_do_the_work() -> None:
    assert chain(plus(lambda s, x: s.mlp(s.norm(x))), plus(lambda s, x: s.norm(s.mlp(x)))) == ["mlp", "mlp_1"]
    assert chain(plus(lambda s, x: s.list[0](x)), plus(lambda s, x: s.list[1](x))) == ["list_0", "list_1"]
    assert chain(plus(lambda s, x: s.inner(x)), plus(lambda s, x: s.mlp(s.inner(x)))) == ["inner", "mlp"]


def test_owner_is_the_module_whose_forward_adds() -> None:
    block = Of(plus(lambda s, x: s.f(x)), f=nn.Linear(C, C))
    model = Of(lambda s, x: s.outer(x) * 2, outer=Of(lambda s, x: s.block(s.block(x)), block=block))
    report = explain(model, tokens())
    assert [(site.owner, site.label) for site in report.sites] == [("outer.block", "f"), ("outer.block", "f_1")]
