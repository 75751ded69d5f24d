"""After three optimizer steps every pair of streams differs; a start at which they never part looks right elsewhere."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import mhc_compile as mhc
from mhc_compile import backend
from mhc_compile.model import start_values
from mhc_compile.ops.connections import Start
from tests.nets.small import WIDTH, Net, PostBlock, Shared, compiled, inputs, made

APART, DEAD = 1e-6, 2e-7

Seen = dict[str, Tensor]


class Recorder(fx.Interpreter):
    """Runs a rewritten graph and keeps the streams behind every site."""

    def __init__(self, gm: fx.GraphModule, seen: Seen) -> None:
        super().__init__(gm)
        self.seen = seen

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.target is torch.ops.mhc.write.default:
            self.seen[n.meta["mhc_site"]] = result.detach()
        return result


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The streams of the last call, by site."""
    found: Seen = {}

    def compile_with(gm: fx.GraphModule, *_: Any) -> Callable[..., Any]:
        return Recorder(gm, found).run

    monkeypatch.setattr(backend, "compile_with", compile_with)
    return found


def train(model: nn.Module, config: mhc.Config, steps: int = 3) -> mhc.Report:
    report = mhc.upgrade(model, (inputs(),), config=config)
    run = compiled(model, kernels="reference")  # whose writes can be seen
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    target = torch.randn(run(inputs()).shape, generator=torch.Generator().manual_seed(4))
    for _ in range(steps):
        optimizer.zero_grad()
        (run(inputs()) - target).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        run(inputs())
    return report


def distances(streams: Tensor) -> list[float]:
    """rms(x_i - x_j) / rms(x) of every pair."""
    parts = streams.double().unbind(-2)
    size = streams.double().square().mean().sqrt()
    return [float((a - b).square().mean().sqrt() / size) for a, b in itertools.combinations(parts, 2)]


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "four sites": (Net, 4),
    "two sites": (lambda: Net(1), 2),
    "post-norm": (lambda: Net(2, PostBlock), 4),
    "shared": (Shared, 6),
    "dropout": (lambda: Net(2, dropout=0.2), 4),
}
models = pytest.mark.parametrize(("make", "sites"), MODELS.values(), ids=MODELS.keys())
streams = pytest.mark.parametrize("n", [2, 4])


@pytest.mark.core(1)
@models
@streams
def test_every_pair_parts(make: Callable[[], nn.Module], sites: int, n: int, seen: Seen) -> None:
    report = train(made(make), mhc.Config(streams=n))
    assert list(seen) == [site.name for site in report.sites]
    assert len(seen) == sites
    for region in report.regions:
        found = distances(seen[region.last])
        assert len(found) == n * (n - 1) // 2
        assert min(found) > APART, found


@pytest.mark.core(1)
@streams
def test_unconstrained_connection_parts(n: int, seen: Seen) -> None:
    report = train(made(), mhc.Config(streams=n, connection="hc"))
    assert min(distances(seen[report.regions[0].last])) > APART


@pytest.mark.core(1)
@models
@streams
def test_streams_start_equal(make: Callable[[], nn.Module], sites: int, n: int, seen: Seen) -> None:
    """Training parts them, not the start."""
    train(made(make), mhc.Config(streams=n), steps=0)
    assert max(max(distances(value)) for value in seen.values()) <= 10 * DEAD
    assert all(value.shape[-2:] == (n, WIDTH) for value in seen.values())


@pytest.mark.core(1)
@models
@streams
def test_a_symmetric_start_stays_dead(
    make: Callable[[], nn.Module], sites: int, n: int, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above fails for it."""
    home = start_values.home

    def symmetric(place: start_values.Place, n: int) -> Start:
        return dataclasses.replace(home(place, n), pre=torch.full((n,), 1 / n, dtype=torch.float64))

    monkeypatch.setattr(start_values, "home", symmetric)
    report = train(made(make), mhc.Config(streams=n))
    assert max(max(distances(seen[region.last])) for region in report.regions) <= DEAD
