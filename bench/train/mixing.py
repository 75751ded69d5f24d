"""Whether a contender keeps n streams between its layers, and a doubly stochastic matrix mixes them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from bench.train.contenders import Entry, entry, is_ours
from bench.train.double import Double
from bench.train.peers import PEERS
from bench.train.setup import Setup
from mhc_compile.cli import bench
from mhc_compile.model.sites import sites_in

MOVED = 0.05  # how far parameters are moved, in standard deviations
STOCHASTIC = 1e-2  # how far from 1 rows and columns may sum: 20 iterations of the projection come as close as 2e-3
MIXES = 1e-3  # how far from the identity a mixing matrix must be
LINEAR = 1e-6  # what a matrix may leave unexplained, in float64


def sums(one: Entry, setup: Setup) -> tuple[float | None, str]:
    """Return how far from 1 rows and columns of the mixing matrix sum; and why it is none, or ""."""
    if one.name == bench.PLAIN:
        return None, ""
    return own_sums(one) if is_ours(one.name) else peer_sums(one.name, setup)


@torch.no_grad()
def own_sums(one: Entry) -> tuple[float | None, str]:
    """Tell it of all of our sites, by the op that the compiled model calls, at parameters that are moved."""
    worst = 0.0
    generator = torch.Generator().manual_seed(5)
    for _, site in sites_in(one.model):
        config = site.config
        if config.connection == "hc":  # unconstrained
            return None, ""
        moved = (
            each + MOVED * torch.randn(each.shape, generator=generator).to(each)
            for each in (site.phi, site.alpha, site.bias)
        )
        streams = torch.randn(32, config.streams, site.channels, generator=generator).to(site.phi)
        _, _, matrix, *_ = torch.ops.mhc.coefficients(
            streams, *moved, site.base, config.streams, config.connection, config.projection, config.sinkhorn_iters,
            config.eps, config.kernels != "reference",
        )  # fmt: skip
        off, why = stochastic(matrix.double())
        worst = max(worst, off)
        if why:
            return worst, why
    return worst, ""


def peer_sums(name: str, setup: Setup) -> tuple[float | None, str]:
    """Return how far from 1 the rows and columns of a peer's mixing matrix sum, or why it has none.

    The middle of three layers, its branches silenced, is given random streams; what comes out is theirs times a matrix.
    """
    small = dataclasses.replace(setup, hidden=64, layers=3, length=16, batch=1, dtype="float32", device="cpu")
    one, n = entry(name, small), setup.streams
    model: Any = one.model.double()
    with torch.no_grad():
        for parameter in one.connections:
            parameter.add_(torch.randn_like(parameter), alpha=MOVED)
        for found, module in model.named_modules():
            if found.endswith(("o_proj", "down_proj")):
                module.weight.zero_()
    given, state = _through_the_middle(model, {"input_ids": one.keywords["input_ids"]})
    each = given.numel() // (small.batch * small.length)
    streams = PEERS[name].streams
    if streams is None or each != n * small.hidden:
        text = (
            f"between layers it keeps {each / small.hidden:g} x C numbers per token, and {n} streams would be {n} x C"
        )
        return None, f"no hyper-connection: {text}"
    before, after = (streams(tensor, n) for tensor in (given, state))
    return judged(before, after)


def judged(before: Tensor, after: Tensor) -> tuple[float | None, str]:
    """Find the matrix that makes streams `[..., n, C]` of others, and say how far from 1 its rows and columns sum."""
    matrix = after @ torch.linalg.pinv(before)  # [..., n, n]
    left = float((after - matrix @ before).norm() / after.norm())
    if left > LINEAR:
        return None, f"streams are not mixed by a matrix: {left:.1e} of them is left unexplained"
    return stochastic(matrix)


def stochastic(matrix: Tensor) -> tuple[float, str]:
    """Say how far from 1 the rows and columns of matrices `[..., n, n]` sum, and what is wrong with them."""
    off = float(torch.maximum((matrix.sum(-1) - 1).abs(), (matrix.sum(-2) - 1).abs()).max())
    if not off <= STOCHASTIC or float(matrix.min()) < -LINEAR:
        return (
            off,
            f"its mixing matrix is not doubly stochastic: sums are up to {off:.1e} off, least {matrix.min():.1e}",
        )
    if float((matrix - torch.eye(matrix.shape[-1]).to(matrix)).abs().max()) < MIXES:
        return off, "its streams do not mix"
    return off, ""


@torch.no_grad()
def _through_the_middle(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return random streams that the second layer is given instead of its own, and what it makes of them."""
    held: dict[str, Tensor] = {}

    def give(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(3)
        held["given"] = torch.randn(args[0].shape, dtype=torch.float64, generator=generator)
        return (held["given"], *args[1:])

    def take(_: Any, __: Any, made: Tensor) -> None:
        held["made"] = made

    handles = [model.model.layers[1].register_forward_pre_hook(give), model.model.layers[1].register_forward_hook(take)]
    with Double():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return held["given"], held["made"]
