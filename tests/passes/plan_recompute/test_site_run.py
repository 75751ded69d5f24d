"""What blocks of sites keep, need for a while and move: the planner's arithmetic, against counting one by one."""

from __future__ import annotations

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mhc_compile.passes.plan_recompute.site_run import SiteRun

RUN = SiteRun(
    sites=tuple("abcdefghij"), region=0, streams=4, channels=100, itemsize=2, tokens=3, coefficients=49, starts=True,
    under_checkpoint=False, replays=0,
)  # fmt: skip
WIDE, PLAIN, MAPS = 4 * 100 * 2, 100 * 2, 4 * (4 + 16)


def test_blocks_of_four() -> None:
    """Ten sites: three heads, of which the first is one stream; every branch's output; 49 coefficients a site."""
    run = RUN.in_blocks_of(4)
    assert run.heads == 3
    assert run.kept == PLAIN + 2 * WIDE + 10 * (PLAIN + 4 * 49)
    assert run.transient == 3 * WIDE
    assert run.moved == 7 * (2 * WIDE + PLAIN + MAPS)
    assert run.before_rewrite == 10 * PLAIN


def test_where_streams_come_from_another_graph() -> None:
    assert dataclasses.replace(RUN.in_blocks_of(4), starts=False).kept == RUN.in_blocks_of(4).kept + WIDE - PLAIN


def test_nothing_planned() -> None:
    """As if every site kept its streams."""
    assert (RUN.kept, RUN.transient, RUN.moved) == (RUN.in_blocks_of(1).kept, 0, 0)


def test_a_block_is_no_longer_than_its_run() -> None:
    assert RUN.in_blocks_of(99) == RUN.in_blocks_of(10)


@given(length=st.integers(1, 30), size=st.integers(1, 30), limit=st.integers(1, 8))
def test_replay(length: int, size: int, limit: int) -> None:
    """Site by site: how many writes its reader replays, from the head or from streams that are made again."""
    run = dataclasses.replace(RUN, sites=tuple(map(str, range(length))), replays=limit).in_blocks_of(size)
    step, moved, alive, most = PLAIN + MAPS, 0, 0, 0
    for site in range(length):
        place = site % run.size
        if place == 0:
            since, alive = 0, 0
        elif since == limit:
            moved += 2 * WIDE + (limit + 1) * step
            since, alive = 0, alive + 1
        else:
            since += 1
        moved += 2 * since * step
        most = max(most, alive)
    assert run.moved == moved
    assert run.transient == most * WIDE
    assert run.kept == dataclasses.replace(run, replays=0).kept


@pytest.mark.parametrize("size", [1, 2, 5, 10])
def test_paper(size: int) -> None:
    """Without the start's exception, kept streams are n C ceil(L / L_r) (Eq. 20)."""
    run = dataclasses.replace(RUN, starts=False).in_blocks_of(size)
    assert run.kept - 10 * (PLAIN + 4 * 49) == WIDE * -(-10 // size)
