"""Gains as tables."""

from __future__ import annotations

import dataclasses

import pytest

import mhc_compile as mhc
from mhc_compile.api.gains import tables
from tests.nets.small import Net, inputs, upgraded


@pytest.fixture(scope="module")
def found() -> mhc.Gains:
    return mhc.gains(upgraded(Net, 2), (inputs(),))


def test_the_table_has_a_line_for_each_site_and_says_what_is_in_it(found: mhc.Gains) -> None:
    first, head, _, *rows, what = str(found).splitlines()
    assert first == (
        "4 sites, 4 streams (mhc, sinkhorn); composite gain at most 1.000 (1.000); streams apart in 0 of 1 regions"
    )
    assert head.split()[:4] == ["site", "region", "forward", "backward"]
    assert [row.split()[0] for row in rows] == [site.name for site in found.sites]
    assert what == tables.WHAT


def test_a_notebook_shows_it_with_names_escaped(found: mhc.Gains) -> None:
    odd = dataclasses.replace(found, sites=(dataclasses.replace(found.sites[0], name="<b>"), *found.sites[1:]))
    shown = odd._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert shown.count("<tr>") == 1 + len(found.sites)


def test_calls_are_told_apart_where_there_are_several(found: mhc.Gains) -> None:
    again = dataclasses.replace(found, sites=(*found.sites, dataclasses.replace(found.sites[0], call=1)))
    assert "blocks.0.attn (call 0)" in str(again)
    assert "blocks.0.attn (call 1)" in str(again)
    assert "blocks.0.mlp (call" not in str(again)


def test_gains_of_thousands_stay_readable() -> None:
    assert tables.number(1.6) == "1.600"
    assert tables.number(123456.0) == "1.23e+05"
