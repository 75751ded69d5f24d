"""How many sites a block has, and which sites may share one."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import mhc_compile as mhc
from mhc_compile.errors import MHCWarning
from mhc_compile.ops import limits
from mhc_compile.passes import ANALYSIS, Plan
from mhc_compile.passes.base import SiteFacts
from mhc_compile.passes.plan_recompute import blocks
from mhc_compile.passes.plan_recompute.blocks import best, peak, plan_blocks
from mhc_compile.passes.plan_recompute.site_run import SiteRun
from mhc_compile.passes.runner import run as run_passes
from tests.nets.chains import Branches, Chain, Middle, Tower
from tests.nets.structures import graph, request, tokens

RUN = SiteRun(
    sites=tuple(map(str, range(24))), region=0, streams=4, channels=512, itemsize=2, tokens=1000, coefficients=49,
    starts=True, under_checkpoint=False, replays=0,
)  # fmt: skip


def plan(
    model: torch.nn.Module, *args: torch.Tensor, devices: frozenset[str] = frozenset(), **options: Any
) -> tuple[list[SiteFacts], mhc.Config]:
    """What is known of a graph's sites, and the options."""
    asked = request(devices=devices, **{"streams": 2, **options})
    found = run_passes(ANALYSIS, graph(model, *(args or (tokens(),))), asked)
    return [site.facts for site in found[Plan].sites], asked.config


def sizes(model: torch.nn.Module, *args: torch.Tensor, **options: Any) -> list[tuple[int, int]]:
    """Length and size of every run."""
    return [(len(run.sites), run.size) for run in plan_blocks(*plan(model, *args, **options))]


@given(length=st.integers(1, 300), n=st.integers(1, 16))
def test_auto_is_the_papers_optimum(length: int, n: int) -> None:
    """The argmin of Eq. 20 over all sizes, the smaller of two; about sqrt(n L / (n + 2))."""
    run = dataclasses.replace(RUN, sites=tuple(map(str, range(length))), streams=n)
    found = best(run)
    costs = {size: n * math.ceil(length / size) + (n + 2) * size for size in range(1, length + 1)}
    assert costs[found] == min(costs.values())
    assert all(costs[size] > costs[found] for size in range(1, found))
    assert costs[found] <= n * (1 + length / (near := max(1, round(math.sqrt(n * length / (n + 2)))))) + (n + 2) * near


@given(length=st.integers(1, 60), n=st.integers(1, 8), limit=st.integers(1, 8))
def test_auto_in_kernels(length: int, n: int, limit: int) -> None:
    """The least of what is kept and moved, within what a kernel replays: nothing is made again as a whole."""
    run = dataclasses.replace(RUN, sites=tuple(map(str, range(length))), streams=n, replays=limit)
    found = run.in_blocks_of(best(run))
    assert found.transient == 0
    costs = [run.in_blocks_of(size).kept + run.in_blocks_of(size).moved for size in range(1, limit + 2)]
    assert found.kept + found.moved == min(costs)


@pytest.mark.parametrize(
    ("n", "length", "size"),
    [
        (4, 12, 3),  # 4 * 4 + 6 * 3 = 34; blocks of 2 or 4 cost 36
        (4, 24, 4),  # 4 * 6 + 6 * 4 = 48; 3 or 5 cost 50
        (2, 24, 3),  # 2 * 8 + 4 * 3 = 28, and 4 the same
        (1, 7, 1),  # 7 + 3 = 10, and 2 the same
        (8, 100, 10),  # 8 * 10 + 10 * 10 = 180; 9 cost 186, 8 cost 184
        (16, 300, 15),  # 16 * 20 + 18 * 15 = 590; 16 cost 592
        (4, 1, 1),
    ],
)
def test_auto_by_hand(n: int, length: int, size: int) -> None:
    """Least of n ceil(L / L_r) + (n + 2) L_r, worked out."""
    assert best(dataclasses.replace(RUN, sites=tuple(map(str, range(length))), streams=n)) == size


@pytest.mark.parametrize(
    ("n", "channels", "limit", "size"),
    [
        (4, 100, 8, 2),  # heads 4 * 800, moved 2 * 5 * 280: 6,000; blocks of 1 cost 7,200, of 3 7,440
        (4, 1000, 8, 2),  # 4 * 8,000 + 2 * 5 * 2,080 = 52,800; of 3 61,440
        (16, 100, 8, 2),  # 4 * 3,200 + 2 * 5 * 1,288 = 25,680; of 1 28,800
        (16, 1000, 8, 4),  # 2 * 32,000 + 2 * 13 * 3,088 = 144,288; of 3 151,584, of 5 155,520
        (16, 1000, 2, 3),  # no more than 2 writes are replayed
        (16, 1000, 1, 2),
    ],
)
def test_auto_in_kernels_by_hand(n: int, channels: int, limit: int, size: int) -> None:
    """Ten sites in 16 bits: heads behind the first, and what two passes of a kernel read of each replayed write.

    That is n C and, of a write, C elements and n + n^2 coefficients in fp32.
    """
    run = dataclasses.replace(RUN, sites=tuple("abcdefghij"), streams=n, channels=channels, replays=limit)
    assert best(run) == size


def test_runs_of_a_chain() -> None:
    assert sizes(Chain(7), recompute=3) == [(7, 3)]
    assert sizes(Chain(7), recompute=30) == [(7, 7)]
    assert sizes(Chain(7), recompute="off") == [(7, 0)]
    assert sizes(Branches(4), recompute=2) == [(4, 2)]


def test_runs_end_at_checkpoints_and_where_streams_fork() -> None:
    assert sizes(Middle(5), recompute=5) == [(1, 1), (1, 0), (1, 0), (1, 0), (1, 1)]
    assert sizes(Tower(), tokens(), tokens(length=3), recompute=5) == [(2, 2), (4, 4)]


def test_facts_of_a_run() -> None:
    (run,) = plan_blocks(*plan(Chain(3).bfloat16(), tokens(3, 7, dtype=torch.bfloat16), recompute=2))
    facts = (run.streams, run.channels, run.itemsize, run.tokens, run.starts, run.under_checkpoint, run.replays)
    assert facts == (2, 8, 2, 21, True, False, 0)


@pytest.mark.parametrize(
    ("connection", "projection", "coefficients"),
    [
        ("mhc", "sinkhorn", 4 + 16 + 4 + 24 + 1),
        ("mhc", "identity", 4 + 16 + 4 + 8 + 1),
        ("hc", "sinkhorn", 24 + 24 + 4),
    ],
)
def test_coefficients_that_a_site_keeps(connection: str, projection: str, coefficients: int) -> None:
    """H_pre, H_post, H_res, the logits, and an inverse norm a row."""
    chosen = plan(Chain(3), streams=4, connection=connection, projection=projection)
    assert plan_blocks(*chosen)[0].coefficients == coefficients


def test_kernels_replay() -> None:
    for dtype in (torch.float32, torch.float64):  # there are no kernels for the latter
        model = Chain(3).to(dtype)
        (run,) = plan_blocks(*plan(model, tokens(dtype=dtype), devices=frozenset({"cpu"}), recompute=2))
        assert run.replays == (limits.replay_limit(2, 4) if dtype is torch.float32 else 0)


@pytest.mark.parametrize("share", [1.0, 0.8, 0.6, 0.5])
def test_a_share_of_what_is_kept_without(share: float) -> None:
    runs = [RUN, dataclasses.replace(RUN, channels=256)]
    found = [run.in_blocks_of(blocks._cheapest(runs, share)) for run in runs]
    without = peak(run.in_blocks_of(1) for run in runs)
    assert peak(found) <= share * without
    if found[0].size > 1:
        assert peak(run.in_blocks_of(found[0].size - 1) for run in runs) > share * without


def test_a_budget_in_bytes() -> None:
    (run,) = plan_blocks(*plan(Chain(12), recompute="off"))
    needed = peak([run.in_blocks_of(2)])
    assert sizes(Chain(12), recompute=f"memory:{needed}") == [(12, 2)]
    assert sizes(Chain(12), recompute=f"memory:{needed - 1}") == [(12, 3)]


def test_a_budget_that_is_too_small() -> None:
    """The least there is, and a warning that says how much that is."""
    (run,) = plan_blocks(*plan(Chain(12), recompute="off"))
    least = min(peak([run.in_blocks_of(size)]) for size in range(1, 13))
    with pytest.warns(MHCWarning, match=f"do not fit in the 1,000 bytes .* planned for {least:,}, the least there is"):
        found = sizes(Chain(12), recompute="memory:1000")
    assert peak([run.in_blocks_of(found[0][1])]) == least


def test_a_budget_that_suffices_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", MHCWarning)
        assert sizes(Chain(12), recompute="memory:1GiB") == [(12, 1)]
