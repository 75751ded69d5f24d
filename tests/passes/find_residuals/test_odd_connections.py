"""Connections as real models spell them. Each function's comments say what must be found in its lines."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.nets.structures import C, Step, check_marks, each_way, structures

pytestmark = pytest.mark.filterwarnings("ignore:mhc finds nothing")


def backcast(self: Any, x: Tensor) -> Tensor:
    return x - self.mlp(x)  # site mlp 1 plain


def subtracted_and_added(self: Any, x: Tensor) -> Tensor:
    x = torch.sub(x, self.attn(x))  # site attn 1 plain
    return x + self.mlp(x)  # site mlp 1 plain


def quantiser(self: Any, x: Tensor) -> Tensor:
    u, total = self.norm(x), torch.zeros_like(x)
    for layer in (self.proj, self.mlp):
        step = layer(u)
        u = u - step  # no shared-branch 2
        total = total + step  # no no-skip 2
    return x + self.attn(total)  # site attn 1 pre-norm


def codebook(self: Any, x: Tensor) -> Tensor:
    codes = self.proj(x).argmax(-1)
    x = x + F.embedding(codes, self.proj.weight)  # no no-skip
    return x + self.mlp(x)  # site mlp 1 plain


def seasonal_and_trend(self: Any, x: Tensor) -> Tensor:
    trend = F.avg_pool1d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2)
    x = x - trend
    return x + self.mlp(x)  # site mlp 1 plain


def sum_of_trends(self: Any, x: Tensor) -> Tensor:
    def trend(y: Tensor) -> Tensor:
        return F.avg_pool1d(y.transpose(1, 2), 3, 1, 1).transpose(1, 2)

    y = x - trend(x)
    z = self.mlp(y)
    trends = trend(y) + trend(z)  # no no-skip
    return z + self.attn(trends)  # no single-site-region


def factor(self: Any, x: Tensor) -> Tensor:
    x = torch.add(x, self.attn(x), alpha=0.5)  # site attn 1 scaled
    return x.sub(self.mlp(x), alpha=0.25)  # site mlp 1 scaled


def python_sum(self: Any, x: Tensor) -> Tensor:
    return sum([self.attn(x), self.mlp(x)]) + x  # site attn 1 parallel; no branch-sum


def python_sum_with_the_carrier(self: Any, x: Tensor) -> Tensor:
    return cast("Tensor", sum([x, self.attn(x), self.mlp(x)]))  # site attn 2 parallel


def stacked_branches(self: Any, x: Tensor) -> Tensor:
    return x + torch.stack([self.attn(x), self.mlp(x)]).sum(0)  # site attn 1 plain


def stacked_with_the_carrier(self: Any, x: Tensor) -> Tensor:
    x = torch.stack([x, self.attn(x), self.mlp(x)], dim=1).sum(dim=1)  # site attn 1 plain
    return torch.stack([self.proj(x), x]).sum(0)  # site proj 1 plain


def learned_scale_and_shift(self: Any, x: Tensor) -> Tensor:
    return (x + self.proj.bias) * self.gamma + (self.mlp(x) + self.proj.bias) * self.gamma  # site mlp 1 scaled


def root_two(self: Any, x: Tensor) -> Tensor:
    return (x + self.mlp(x)) / 2**0.5  # site mlp 1 plain


def tanh_gate(self: Any, x: Tensor) -> Tensor:
    return x + self.gamma[0].tanh() * self.cross(self.norm(x))  # site cross 1 scaled pre-norm


def gate_by_token(self: Any, x: Tensor) -> Tensor:
    gate = self.proj(x.mean(1, keepdim=True))
    return x + self.mlp(self.norm(x)) * gate  # site mlp 1 scaled pre-norm


def position_in_every_layer(self: Any, x: Tensor) -> Tensor:
    position = self.mlp(x.mean(-1, keepdim=True).expand_as(x).sigmoid())
    q = x + self.gamma + position  # no inside-branch
    x = x + self.attn(q, x)  # site attn 1 plain
    return x + self.mlp(x)  # site mlp 1 plain


def position_made_of_the_query(self: Any, x: Tensor) -> Tensor:
    q = x + self.proj(x).sigmoid()  # no inside-branch
    return x + self.attn(q)  # site attn 1 plain


def queries_meet_their_own_start(self: Any, x: Tensor) -> Tensor:
    y = self.norm(self.attn(x))
    q = y + x  # no added-again
    return y + self.cross(q)  # no single-site-region


def pooled_skip(self: Any, x: Tensor) -> Tensor:
    y = F.avg_pool1d(x.transpose(1, 2), 1).transpose(1, 2) + self.proj(x)  # no skip-reshaped
    return y + self.mlp(y)  # no single-site-region


def class_token(self: Any, x: Tensor) -> Tensor:
    token = x[:, :1] + self.attn(self.norm(x)[:, :1], self.norm(x))  # no skip-reshaped
    x = torch.cat([token, x[:, 1:]], 1)
    return x + self.mlp(x)  # no single-site-region


def coupling(self: Any, x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    b = b + self.up(self.down(x))[..., : C // 2] * a  # no no-skip
    x = torch.cat([a, b], -1)
    return x + self.mlp(x)  # no single-site-region


def projection_with_a_norm(self: Any, x: Tensor) -> Tensor:
    y = self.norm2(self.proj(x)) + self.norm3(self.mlp(self.norm(x)))  # no projection-shortcut
    return y + self.attn(y)  # no single-site-region


def lora_with_dropout(self: Any, x: Tensor) -> Tensor:
    v = self.proj(x) + 2.0 * self.up(self.down(self.drop(x)))  # no no-skip
    return x + self.mlp(v)  # site mlp 1 plain


def inside_a_branch(self: Any, x: Tensor) -> Tensor:
    u = self.norm(x)
    u = u + self.proj(u)  # no single-site-region
    return x + self.mlp(u)  # site mlp 1 pre-norm


def mixes_streams(self: Any, x: Tensor) -> Tensor:
    streams = torch.stack([x, 2 * x], -2)
    mix = self.down(x).softmax(-1)[..., None] * torch.ones(2)
    write = self.down(x).sigmoid()
    f = self.mlp(streams.mean(-2))
    streams = mix @ streams + write[..., None] * f[..., None, :]  # no multi-stream
    return streams.sum(-2)


def layer_drop(self: Any, x: Tensor) -> Tensor:
    keep = torch.rand(x.shape[0], 1, 1).gt(0.2)
    return torch.where(keep, x + self.mlp(x), x)  # site mlp 1 plain


STRUCTURES = structures(globals())


@each_way
@pytest.mark.parametrize("step", STRUCTURES, ids=lambda step: step.__name__)
def test_structure(step: Step, ask: Any) -> None:
    check_marks(step, ask)
