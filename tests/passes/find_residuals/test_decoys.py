"""Adds that are no residual connection, or one that is left alone, next to some that are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.nets.structures import C, Net, Step, check_marks, each_way, explain, reasons, structures

pytestmark = pytest.mark.filterwarnings("ignore:mhc finds nothing")


def tanh_gelu(self: Any, x: Tensor) -> Tensor:
    h = self.proj(self.norm(x))
    h = 0.5 * h * (1 + torch.tanh(0.79788 * (h + 0.044715 * h**3)))  # no pointwise-branch
    return x + self.proj(h)  # site proj 1 pre-norm


def rotary(self: Any, x: Tensor) -> Tensor:
    q = self.attn.q(self.norm(x))
    angle = torch.arange(x.shape[1])[:, None] * torch.ones(C)
    half = torch.cat((-q[..., C // 2 :], q[..., : C // 2]), -1)
    q = q * angle.cos() + half * angle.sin()  # no no-skip
    return x + self.mlp(q)  # site mlp 1 pre-norm


def minus_mean(self: Any, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x + self.mlp(x)  # site mlp 1 plain


def plus_mean(self: Any, x: Tensor) -> Tensor:
    y = x + x.mean(-1, keepdim=True).expand_as(x)  # no pointwise-branch
    return y + self.mlp(y)  # site mlp 1 plain


def plus_sum_over_tokens(self: Any, x: Tensor) -> Tensor:
    u = self.norm(x)
    v = u + u.sum(1, keepdim=True).expand_as(u)  # no pointwise-branch
    return x + self.mlp(v)  # site mlp 1 pre-norm


def plus_own_norm(self: Any, x: Tensor) -> Tensor:
    u = self.proj(x)
    v = u + self.norm(u)  # no pointwise-branch
    return x + self.mlp(v)  # site mlp 1 plain


def gated_sum(self: Any, x: Tensor) -> Tensor:
    y = x + self.mlp(x)  # site mlp 1 plain
    return y * self.proj(y).sigmoid() * self.up(self.down(y)).tanh()


def global_context(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(x.mean(1, keepdim=True))  # no broadcast
    return x + self.mlp(x)  # site mlp 1 plain


def highway(self: Any, x: Tensor) -> Tensor:
    gate = self.proj(x).sigmoid()
    y = gate * self.attn(x) + (1 - gate) * x  # no gated-skip
    return y + self.mlp(y)  # site mlp 1 plain


def gate_of_a_condition(self: Any, x: Tensor) -> Tensor:
    return x * self.proj(x.mean(1, keepdim=True)).sigmoid() + self.mlp(x)  # no gated-skip


def lerp_by_a_gate(self: Any, x: Tensor) -> Tensor:
    return torch.lerp(x, self.mlp(x), self.proj(x).sigmoid())  # no gated-skip


def two_branches_in_a_gate(self: Any, x: Tensor) -> Tensor:
    a, b = self.attn(x).tanh(), self.mlp(x)
    gate = self.proj(a + b).sigmoid()  # no no-skip
    return gate * a + (1 - gate) * b  # no no-skip


def learned_carrier(self: Any, x: Tensor) -> Tensor:
    return self.gamma * x + self.mlp(x)  # site mlp 1 plain


def projected_carrier(self: Any, x: Tensor) -> Tensor:
    return self.proj(x) + self.mlp(x)  # no projection-shortcut


def normed_carrier(self: Any, x: Tensor) -> Tensor:
    return self.norm(x) + self.mlp(x)  # no no-skip


def recurrence(self: Any, x: Tensor) -> Tensor:
    u, h, states = self.norm(x), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = self.attn.q(h) + self.proj(u[:, t])  # no no-skip 5
        states.append(h)
    return x + self.mlp(torch.stack(states, 1))  # site mlp 1 pre-norm


def selective_scan(self: Any, x: Tensor) -> Tensor:
    u, states = self.norm(x), []
    step, h = F.softplus(self.proj(u)), u[:, 0]
    for t in range(x.shape[1]):
        h = torch.sigmoid(self.gamma) * h + step[:, t] * u[:, t]  # no no-skip 4; no pointwise-branch
        states.append(h)
    y = torch.stack(states, 1) + self.gamma * u  # no skip-scaled
    return x + self.mlp(y * F.silu(self.proj(u)))  # site mlp 1 pre-norm


def query_position(self: Any, x: Tensor) -> Tensor:
    q = x + self.gamma.expand_as(x)  # no no-skip
    x = x + self.attn(q, x)  # site attn 1 plain
    return x + self.mlp(x)  # site mlp 1 plain


def only_with_a_position(self: Any, x: Tensor) -> Tensor:
    q = x + self.gamma.expand_as(x)  # no no-skip
    x = x + self.attn(q, q)  # site attn 1 plain
    x = x + self.mlp(x)  # site mlp 1 plain
    return x + self.proj(x)  # site proj 1 plain


def integers(self: Any, x: Tensor) -> Tensor:
    i = torch.arange(x.shape[1])[:, None].expand(-1, 3)
    j = i + i.roll(1, 0)  # no integer
    return x + self.mlp(x[:, j[:, 0] % 5])  # site mlp 1 plain


def noise(self: Any, x: Tensor) -> Tensor:
    y = x + 0.1 * torch.randn_like(x)  # no no-skip
    y = y + x.new_zeros(x.shape).normal_()  # no no-skip
    return y + self.mlp(y)  # site mlp 1 plain


def embedding_of_a_shape(self: Any, x: Tensor) -> Tensor:
    position = F.embedding(torch.arange(x.shape[1]), self.proj.weight)
    x = x + position.expand_as(x)  # no no-skip
    return x + self.mlp(x)  # site mlp 1 plain


def other_combinations(self: Any, x: Tensor) -> Tensor:
    f = self.mlp(x)
    x = torch.add(x - f, f, alpha=0.5)
    x = torch.addcmul(x, f, f)
    return torch.lerp(x, f, 0.5) + 1  # (not an add of two tensors)


def twice(self: Any, x: Tensor) -> Tensor:
    y = x + self.mlp(x)  # site mlp 1 plain
    return y + y  # no no-skip


def wraps_others(self: Any, x: Tensor) -> Tensor:
    y = x + self.mlp(x)  # site mlp 1 plain
    z = y + self.attn(y)  # site attn 1 plain
    return self.norm(x + self.proj(z))  # no nested


def skips_over_others(self: Any, x: Tensor) -> Tensor:
    y = x + self.mlp(x)  # site mlp 1 plain
    z = y + self.attn(y)  # site attn 1 plain
    z = z + self.proj(z)  # site proj 1 plain
    return self.norm(z + y)  # no nested


def two_towers(self: Any, x: Tensor) -> Tensor:
    x = x + self.mlp(x)  # site mlp 1 plain
    y = x + self.attn(x)  # site attn 1 plain
    z = x + self.proj(x)  # site proj 1 plain
    return y * z


def reversible(self: Any, x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    a = a + self.up(b[..., :2])[..., : C // 2]  # no reversible
    b = b + self.up(a[..., :2])[..., : C // 2]  # no single-site-region
    return torch.cat([a, b], -1)


def of_the_caller(self: Any, x: Tensor) -> Tensor:
    x += self.mlp(x)  # no in-place
    return x


def set_item(self: Any, x: Tensor) -> Tensor:
    y = x + self.mlp(x)  # no in-place
    y[:, 0] = 0.0
    return y + self.attn(y)  # no in-place


def sliced_add(self: Any, x: Tensor) -> Tensor:
    y = x + self.mlp(x)  # no in-place
    y[:, 1:] += self.proj(y[:, 1:])  # no skip-reshaped
    return y + self.attn(y)  # no in-place


def no_feature_axis(self: Any, x: Tensor) -> Tensor:
    y = x + self.proj(x)  # no single-site-region
    return (y + y.cumsum(1)).flatten(1).view(x.shape)  # no feature-axis


def complex_numbers(self: Any, x: Tensor) -> Tensor:
    z = torch.complex(x, x)
    z = z + self.proj(x) * 1j  # no complex
    return z.real


def two_sites(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(self.norm(x))
    return x + self.mlp(x)


STRUCTURES = structures(globals())


@each_way
@pytest.mark.parametrize("step", STRUCTURES, ids=lambda step: step.__name__)
def test_structure(step: Step, ask: Any) -> None:
    check_marks(step, ask)


def test_nested_tensors_are_left_alone() -> None:
    """Rows that are not equally long have no streams; the same layers with a dense tensor have."""
    rows = [torch.randn(3, C), torch.randn(5, C)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
    net = Net(two_sites, 1)
    assert reasons(explain(net, nested)) == ["nested-tensor"] * 2
    assert len(explain(net, rows[0]).sites) == 2
