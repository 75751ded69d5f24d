"""What streams flow through between two sites, and what ends a region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mhc_compile as mhc
from tests.nets.structures import C, Layer, Step, each_way, names, reasons, tokens

pytestmark = pytest.mark.filterwarnings("ignore:mhc finds nothing")


def pair(between: Step, ask: Callable[..., mhc.Report] = mhc.explain) -> mhc.Report:
    """Two sites, and what happens between their sums."""

    def step(self: Any, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        x = between(self, x)
        return x + self.mlp(x)

    report = ask(Layer(step), (tokens(),))
    assert report.max_error is None or report.max_error < 1e-5
    return report


LIFTED = [
    pytest.param(lambda s, x: x, (), id="x"),
    pytest.param(lambda s, x: s.norm(x), ("layer_norm",), id="norm(x)"),
    pytest.param(lambda s, x: F.gelu(x) * 2, ("gelu", "mul"), id="gelu(x) * 2"),
    pytest.param(lambda s, x: x**2, ("pow",), id="x ** 2"),
    pytest.param(lambda s, x: 2 / (3 + x * x), ("mul", "add", "truediv"), id="2 / (3 + x * x)"),
    pytest.param(lambda s, x: x.double().to(torch.float32), ("double", "to"), id="x.double().to(float32)"),
    pytest.param(lambda s, x: x - x.mean(2, keepdim=True), ("mean", "sub"), id="x - x.mean(2, keepdim=True)"),
    pytest.param(
        lambda s, x: x / x.norm(2, dim=2, keepdim=True), ("norm", "truediv"), id="x / x.norm(2, dim=2, keepdim=True)"
    ),
    pytest.param(
        lambda s, x: x * torch.rsqrt(x.pow(2).mean(dim=(2,), keepdim=True)),
        ("pow", "mean", "rsqrt", "mul"),
        id="x * rsqrt(x.pow(2).mean(dim=(2,), keepdim=True))",
    ),
    pytest.param(lambda s, x: x + s.gamma, ("add",), id="x + gamma"),
    pytest.param(lambda s, x: x + s.gamma.expand(2, 5, C), ("add",), id="x + gamma.expand(2, 5, C)"),
    pytest.param(
        lambda s, x: x.masked_fill(torch.ones(2, 5, 1).bool().logical_not(), 0.0),
        ("masked_fill",),
        id="x.masked_fill(ones(2, 5, 1).bool().logical_not(), 0.0)",
    ),
    pytest.param(
        lambda s, x: torch.where(torch.ones(5, 1).bool(), x, 0.0), ("where",), id="where(ones(5, 1).bool(), x, 0.0)"
    ),
    pytest.param(lambda s, x: x * s.proj(x).sigmoid(), ("mul",), id="x * proj(x).sigmoid()"),
    pytest.param(lambda s, x: x * x.relu().mean(1, keepdim=True), ("mul",), id="x * x.relu().mean(1, keepdim=True)"),
    pytest.param(
        lambda s, x: x.relu() * x.relu().mean(1, keepdim=True),
        ("relu", "mul"),
        id="x.relu() * x.relu().mean(1, keepdim=True)",
    ),
    pytest.param(lambda s, x: x[:, :3], ("getitem",), id="x[:, :3]"),
    pytest.param(lambda s, x: x.reshape(5, 2, C), ("reshape",), id="x.reshape(5, 2, C)"),
    pytest.param(
        lambda s, x: x.view(-1, C).tanh().view(x.shape),
        ("view", "tanh", "view"),
        id="x.view(-1, C).tanh().view(x.shape)",
    ),
    pytest.param(
        lambda s, x: x.transpose(0, 1).contiguous(), ("transpose", "contiguous"), id="x.transpose(0, 1).contiguous()"
    ),
    pytest.param(
        lambda s, x: x.unsqueeze(1).permute(0, 2, 1, 3).squeeze(-2),
        ("unsqueeze", "permute", "squeeze"),
        id="x.unsqueeze(1).permute(0, 2, 1, 3).squeeze(-2)",
    ),
    pytest.param(
        lambda s, x: x.unsqueeze(1).flatten(0, 1), ("unsqueeze", "flatten"), id="x.unsqueeze(1).flatten(0, 1)"
    ),
    pytest.param(lambda s, x: s.norm(x.flatten(0, -2)), ("flatten", "layer_norm"), id="norm(x.flatten(0, -2))"),
]


def overwritten(_: Any, x: Tensor) -> Tensor:
    y = x.relu()
    half = y[..., : C // 2]
    y.mul_(2.0)
    return 1.0 * y + half.sum(-1, keepdim=True)


ENDING = [
    overwritten,
    pytest.param(lambda s, x: s.proj(x), id="proj(x)"),
    pytest.param(lambda s, x: s.drop(x), id="drop(x)"),
    pytest.param(lambda s, x: x.flip(1), id="x.flip(1)"),
    pytest.param(lambda s, x: x.cumsum(1), id="x.cumsum(1)"),
    pytest.param(lambda s, x: x[:, :, : C // 2].repeat(1, 1, 2), id="x[:, :, :C // 2].repeat(1, 1, 2)"),
    pytest.param(lambda s, x: F.layer_norm(x, x.shape[1:]), id="layer_norm(x, x.shape[1:])"),
    pytest.param(lambda s, x: x.softmax(1), id="x.softmax(1)"),
    pytest.param(lambda s, x: x.transpose(1, 2).transpose(1, 2), id="x.transpose(1, 2).transpose(1, 2)"),
    pytest.param(lambda s, x: x.reshape(2, 5 * C).view(x.shape), id="x.reshape(2, 5 * C).view(x.shape)"),
    pytest.param(lambda s, x: x[:, :, None].mean(2), id="x[:, :, None].mean(2)"),
]


@each_way
@pytest.mark.parametrize(("between", "lifts"), LIFTED)
def test_ops_by_token_are_lifted(between: Step, lifts: tuple[str, ...], ask: Any) -> None:
    report = pair(between, ask)
    assert [site.lifts for site in report.sites] == [(), lifts]
    assert [site.predecessor for site in report.sites] == [None, "attn"]
    assert [(site.k, site.length, site.region) for site in report.sites] == [(0, 2, 0), (1, 2, 0)]


@pytest.mark.parametrize("between", ENDING)
def test_other_ops_end_the_region(between: Step) -> None:
    report = pair(between)
    assert names(report) == []
    assert reasons(report) == ["single-site-region"] * 2
    assert all(rejection.residual for rejection in report.rejections)
