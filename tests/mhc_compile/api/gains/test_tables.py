"""Gains as tables."""

from __future__ import annotations

import dataclasses

from mhc_compile.api.gains import tables
from mhc_compile.api.gains.result import Gains
from tests.mhc_compile.api.gains.made_up import site

FOUND = Gains(2, "mhc", "sinkhorn", (site("a.attn", gain=1.25), site("a.mlp"), site("b", region=1, spread=1e-8)))


def test_the_table_has_a_line_for_each_site_and_says_what_is_in_it() -> None:
    first, head, _, *rows, what = str(FOUND).splitlines()
    assert first == (
        "3 sites, 2 streams (mhc, sinkhorn); composite gain at most 1.250 (2.500); streams apart in 1 of 2 regions"
    )
    assert head.split()[:4] == ["site", "region", "forward", "backward"]
    assert rows[0].split() == (
        "a.attn 0 1.000 (1.000) 1.000 (1.000) 1.250 (2.500) 1.000 (1.000) - 0.000 1.000 1.0e-01 0.750".split()
    )
    assert [row.split()[0] for row in rows] == ["a.attn", "a.mlp", "b"]
    assert what == tables.WHAT


def test_hc_has_no_projection() -> None:
    assert "2 streams (hc);" in str(dataclasses.replace(FOUND, connection="hc"))


def test_a_notebook_shows_it_with_names_escaped() -> None:
    shown = Gains(2, "mhc", "sinkhorn", (site("<b>"), site("c")))._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert shown.count("<tr>") == 1 + 2


def test_calls_are_told_apart_where_there_are_several() -> None:
    shown = str(Gains(2, "mhc", "sinkhorn", (site("a"), site("b"), site("a", call=1))))
    assert "a (call 0)" in shown
    assert "a (call 1)" in shown
    assert "b (call" not in shown


def test_gains_of_thousands_stay_readable() -> None:
    assert tables.number(1.6) == "1.600"
    assert tables.number(123456.0) == "1.23e+05"
