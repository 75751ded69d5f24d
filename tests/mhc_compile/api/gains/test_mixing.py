"""Known matrices, in fp64: gains and composites are those that are computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.api.gains import mixing
from mhc_compile.api.gains.tokens import Streams
from mhc_compile.ops import reference
from tests.nets.small import Net, inputs, made, perturb

N = 4


def doubled(connection: str, layers: int = 2, **options: Any) -> tuple[nn.Module, Tensor]:
    model = made(Net, layers).double()
    x = inputs().double()
    mhc.upgrade(model, (x,), config=mhc.Config(connection=connection, **options))
    return model.double(), x


@torch.no_grad()
def set_matrices(model: nn.Module, matrices: list[Tensor]) -> None:
    """Let the static part of the bias be the logits of H_res (hc: H_res itself)."""
    sites = [module for name, module in model.named_modules() if name.endswith(("mhc.attn", "mhc.mlp"))]
    for site, matrix in zip(sites, matrices, strict=True):
        bias, base = site.get_parameter("bias"), site.get_buffer("base")
        bias[2 * N :] = matrix.flatten() - base[2 * N :]


@pytest.mark.parametrize("connection", ["hc", "mhc"])
def test_a_product_by_hand_is_reproduced(connection: str) -> None:
    model, x = doubled(connection)
    given = list(torch.randn(4, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    set_matrices(model, given)
    maps = given if connection == "hc" else [reference.sinkhorn(each, 20) for each in given]
    found = mhc.gains(model, (x,))
    product = torch.eye(N, dtype=torch.float64)
    for site, h_res in reversed(list(zip(found.sites, maps, strict=True))):
        product = product @ h_res
        for part, matrix in ((site.h_res, h_res), (site.composite, product)):
            assert torch.allclose(torch.tensor(part.matrix, dtype=torch.float64), matrix, atol=1e-6, rtol=0)
            assert part.forward.mean == pytest.approx(float(matrix.sum(-1).abs().max()), abs=1e-6)
            assert part.backward.max == pytest.approx(float(matrix.sum(-2).abs().max()), abs=1e-6)
        eye = torch.eye(N, dtype=torch.float64)
        assert site.from_identity == pytest.approx(float((h_res - eye).norm()), abs=1e-6)
        assert site.from_uniform == pytest.approx(float((h_res - 1 / N).norm()), abs=1e-6)
        if connection == "mhc":
            assert site.column_error == pytest.approx(float((h_res.sum(-2) - 1).abs().max()), abs=1e-6)


class Moving(nn.Module):
    """Between its adds, tokens are moved, cut off and folded; its branches add nothing, so only mixing is left."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(4))
        for layer in self.layers:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]  # a weight

    def forward(self, x: Tensor) -> Tensor:
        one, two, three, four = self.layers
        x = x + one(torch.tanh(x))
        x = x.transpose(0, 1)
        x = x + two(torch.tanh(x))
        x = x[1:].reshape(-1, 2, 16)
        x = x + three(torch.tanh(x))
        x = x.flatten(0, 1)
        out: Tensor = x + four(torch.tanh(x))
        return out


def test_every_token_keeps_its_own_product_where_tokens_move() -> None:
    """With hc rows sum to anything, so the output is the input times the mean row sum of each token's product."""
    model = Moving().double()
    x = torch.rand(4, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.5
    x[0] *= 3
    mhc.upgrade(model, (x,), config=mhc.Config(connection="hc", alpha=1.0))
    model.double()
    perturb(model, scale=1.0)
    found = mhc.gains(model, (x,))
    assert len(found.sites) == 4
    assert found.sites[0].region == found.sites[3].region
    assert [site.tokens for site in found.sites] == [24, 24, 20, 20]
    model.compile(backend="mhc", options={"compiler": "eager"})
    kept = x.transpose(0, 1)[1:].reshape(-1, 2, 16).flatten(0, 1)
    factor = float((model(x) / kept).detach().mean(-1).mean())
    assert sum(map(sum, found.sites[0].composite.matrix)) / N == pytest.approx(factor, rel=1e-9)
    per_token = model(x).detach() / kept
    assert per_token.std(0).max() > 1e-3  # tokens have different products, or moving them would not matter


def test_spread_and_shares_by_hand() -> None:
    x = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 2.0], [0.0, 2.0]]])  # [T=2, n=2, C=2]
    found = Streams.of(x)
    assert found.apart.tolist() == pytest.approx([2.0, 0.0])
    assert found.size.tolist() == pytest.approx([10.0, 8.0])
    assert found.shares.tolist() == [2.0 + 4.0, 6.0 + 4.0]


def test_gains_of_one_map() -> None:
    maps = torch.tensor([[[2.0, -5.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    found = mixing.mixing(maps)
    assert (found.forward.mean, found.forward.max) == (2.0, 3.0)
    assert (found.backward.mean, found.backward.max) == (2.5, 4.0)
    assert found.matrix == ((1.5, -2.5), (0.0, 1.0))
