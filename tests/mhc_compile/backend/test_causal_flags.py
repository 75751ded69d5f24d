"""causal_flags: attention whose flag depends on a size is one graph for every size, compiled or not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import mhc_compile as mhc
from tests.nets.small import Net, compiled, inputs, made, perturb, relative


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=x.shape[1] > 1)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Decoder(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(16), Attention(), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        out: Tensor = x + self.mlp(x.tanh())
        return out


@pytest.mark.core(1)
@pytest.mark.parametrize("way", ["called", "compiled", "dynamic"])
def test_every_size(way: str) -> None:
    model = made(Net, 2, Decoder)
    mhc.upgrade(model, (inputs(),))
    perturb(model)
    dynamic = True if way == "dynamic" else None
    made_once: Any = torch.compile(model, backend="mhc", dynamic=dynamic, options={"compiler": "eager"})
    run = model if way == "called" else made_once
    sizes = [(3, 5), (4, 7), (2, 9), (5, 6), (2, 1), (3, 8)]
    given = [inputs(*size) for size in sizes]
    outputs = [run(x) for x in given]
    torch._dynamo.reset()
    for x, out in zip(given, outputs, strict=True):
        assert relative(out, compiled(copy.deepcopy(model))(x)) < 1e-6


def test_other_models_too() -> None:
    """Two graphs, for more than three tokens and for fewer: one flag is symbolic and positional, the other is plain."""
    counter = CompileCounter()

    @torch.compile(backend=counter, dynamic=True, fullgraph=True)
    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, None, 0.0, x.shape[1] > 3) + (
            F.scaled_dot_product_attention(x, x, x, is_causal=True)
        )

    for tokens in (5, 4, 2, 3):
        x = torch.randn(2, tokens, 4)
        causal = F.scaled_dot_product_attention(x, x, x, is_causal=True)
        whole = F.scaled_dot_product_attention(x, x, x)
        torch.testing.assert_close(attend(x), causal + (causal if tokens > 3 else whole))
    assert counter.frame_count == 2
