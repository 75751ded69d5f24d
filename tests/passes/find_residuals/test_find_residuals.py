"""Structures that hold residual connections. Each function's comments say what must be found in its lines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.nets.structures import C, Step, check_marks, each_way, structures

pytestmark = pytest.mark.filterwarnings("ignore:mhc finds nothing")


def pre_norm(self: Any, x: Tensor) -> Tensor:
    x = x + self.attn(self.norm(x))  # site attn 1 pre-norm
    return x + self.mlp(self.norm2(x))  # site mlp 1 pre-norm


def post_norm(self: Any, x: Tensor) -> Tensor:
    x = self.norm(x + self.attn(x))  # site attn 1 post-norm
    return self.norm2(x + self.mlp(x))  # site mlp 1 post-norm


def sandwich(self: Any, x: Tensor) -> Tensor:
    x = x + self.norm2(self.attn(self.norm(x)))  # site attn 1 sandwich
    return x + self.norm4(self.mlp(self.norm3(x)))  # site mlp 1 sandwich


def without_norm(self: Any, x: Tensor) -> Tensor:
    return x + self.mlp(x)  # site mlp 1 plain


def branch_first(self: Any, x: Tensor) -> Tensor:
    return self.mlp(self.norm(x)) + x  # site mlp 1 pre-norm


def parallel_xam(self: Any, x: Tensor) -> Tensor:
    u = self.norm(x)
    return x + self.attn(u) + self.mlp(u)  # site attn 2 parallel pre-norm


def parallel_axm(self: Any, x: Tensor) -> Tensor:
    u = self.norm(x)
    return self.attn(u) + x + self.mlp(u)  # site attn 2 parallel pre-norm


def parallel_m_ax(self: Any, x: Tensor) -> Tensor:
    u = self.norm(x)
    return self.mlp(u) + (self.attn(u) + x)  # site mlp 2 parallel pre-norm


def parallel_m_xa(self: Any, x: Tensor) -> Tensor:
    u = self.norm(x)
    return self.mlp(u) + (x + self.attn(u))  # site mlp 2 parallel pre-norm


def parallel_am_x(self: Any, x: Tensor) -> Tensor:
    u = self.norm(x)
    return self.attn(u) + self.mlp(u) + x  # site attn 1 parallel pre-norm; no branch-sum


def parallel_x_am(self: Any, x: Tensor) -> Tensor:
    u = self.norm(x)
    return x + (self.attn(u) + self.mlp(u))  # site attn 1 parallel pre-norm; no branch-sum


def parallel_am_px(self: Any, x: Tensor) -> Tensor:
    u = self.norm(x)
    return (self.attn(u) + self.mlp(u)) + (self.proj(u) + x)  # site attn 2 parallel pre-norm; no branch-sum


def parallel_in_two_lines(self: Any, x: Tensor) -> Tensor:
    u = self.norm(x)
    y = x + self.attn(u)
    return self.mlp(u) + y  # site mlp 2 parallel pre-norm


def layer_scale(self: Any, x: Tensor) -> Tensor:
    return x + self.gamma * self.mlp(self.norm(x))  # site mlp 1 scaled pre-norm


def multiplier(self: Any, x: Tensor) -> Tensor:
    return x + self.mlp(self.norm(x)) * 0.22  # site mlp 1 scaled pre-norm


def carrier_multiplier(self: Any, x: Tensor) -> Tensor:
    return 0.9 * x + self.mlp(self.norm(x))  # site mlp 1 pre-norm


def both_multipliers(self: Any, x: Tensor) -> Tensor:
    return 0.6 * x + 0.8 * self.mlp(x)  # site mlp 1 scaled


def dropout(self: Any, x: Tensor) -> Tensor:
    return x + self.drop(self.mlp(self.norm(x)))  # site mlp 1 pre-norm


def drop_path(self: Any, x: Tensor) -> Tensor:
    mask = torch.rand(x.shape[0], 1, 1).add(0.9).floor()
    return x + self.mlp(self.norm(x)) / 0.9 * mask  # site mlp 1 scaled pre-norm


def linear_with_bias(self: Any, x: Tensor) -> Tensor:
    return x + (self.norm(x) @ self.proj.weight + self.proj.bias)  # site proj_weight 1 pre-norm


def functions_only(self: Any, x: Tensor) -> Tensor:
    return x + F.linear(F.layer_norm(x, (C,)), self.proj.weight)  # site proj_weight 1 pre-norm


def fp32_residual(self: Any, x: Tensor) -> Tensor:
    return (x.float() + self.mlp(self.norm(x)).float()).to(x.dtype)  # site mlp 1 pre-norm


def iadd(self: Any, x: Tensor) -> Tensor:
    y = x + self.attn(self.norm(x))  # site attn 1 pre-norm
    y += self.mlp(self.norm2(y))  # site mlp 1 pre-norm
    return y


def add_method(self: Any, x: Tensor) -> Tensor:
    y = x.add(self.attn(self.norm(x)))  # site attn 1 pre-norm
    return y.add_(self.mlp(self.norm2(y)))  # site mlp 1 pre-norm


def add_function(self: Any, x: Tensor) -> Tensor:
    y = torch.add(x, self.attn(self.norm(x)))  # site attn 1 pre-norm
    return torch.add(self.mlp(self.norm2(y)), y)  # site mlp 1 pre-norm


def branch_overwritten(self: Any, x: Tensor) -> Tensor:
    f = self.mlp(self.norm(x))
    f += x  # site mlp 1 pre-norm
    return f


def read_through_a_view(self: Any, x: Tensor) -> Tensor:
    y = self.proj(x)
    z = y + self.attn(y)  # no in-place
    view = z[:, :1]
    z += self.mlp(z)  # no in-place
    return z * view.sigmoid()


def behind_an_in_place_sum(self: Any, x: Tensor) -> Tensor:
    h = self.mlp(x)
    view = h[:, :1]
    h += x  # no in-place
    y = h + self.attn(h)  # site attn 1 plain
    return (y + self.proj(y)) * view.sigmoid()  # site proj 1 plain


def lora(self: Any, x: Tensor) -> Tensor:
    u = self.norm(x)
    v = self.proj(u) + self.up(self.down(u))  # no no-skip
    return x + self.mlp(v)  # site mlp 1 pre-norm


def experts(self: Any, x: Tensor) -> Tensor:
    u = self.norm(x)
    routed = torch.stack([self.mlp(u), self.proj(u)]).sum(0)
    return x + (routed + self.shared(u))  # site mlp 1 parallel pre-norm; no branch-sum


def feedthrough(self: Any, x: Tensor) -> Tensor:
    u = self.norm(x)
    y = self.proj(u).cumsum(1)
    y = y + self.gamma * u  # no skip-scaled
    return x + self.up(self.down(y))  # site up 1 pre-norm


STRUCTURES = structures(globals())


@each_way
@pytest.mark.parametrize("step", STRUCTURES, ids=lambda step: step.__name__)
def test_structure(step: Step, ask: Any) -> None:
    check_marks(step, ask)
