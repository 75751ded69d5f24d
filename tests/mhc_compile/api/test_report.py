"""The report as a value: it is frozen, it is whole when it is made, and its numbers follow from its plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

import mhc_compile as mhc
from mhc_compile.api.report import Report
from mhc_compile.api.tables import Table, as_html, as_text
from mhc_compile.errors import ConfigError
from tests.nets.small import inputs, made, upgraded


def test_a_report_is_frozen() -> None:
    report = mhc.explain(made(), (inputs(),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.training = True  # type: ignore[misc]


def test_the_report_of_a_plan_alone() -> None:
    model = upgraded()
    plan = mhc.explain(made(), (inputs(),)).plan
    report = Report.of_plan(plan, model)
    assert (report.rejections, report.breaks, report.cuts, report.graphs) == ((), (), (), 0)
    assert (report.plan, report.model, report.max_error) == (plan, model, None)
    assert "4 sites in 1 regions, 0 other adds, 0 graph(s)" in str(report)
    assert mhc.upgrade(model).graphs == 0


def test_upgrade_tells_what_explain_tells_and_what_it_verified() -> None:
    told = mhc.explain(made(), (inputs(),), training=True)
    report = mhc.upgrade(made(), (inputs(),))
    assert dataclasses.replace(report, model=told.model, max_error=None) == told
    assert report.max_error is not None
    assert report.max_error < 1e-5
    assert mhc.upgrade(made(), (inputs(),), verify=False).max_error is None


@pytest.mark.parametrize("config", [mhc.Config(streams=1), mhc.Config(connection="residual")], ids=["n=1", "residual"])
def test_what_rewrites_nothing_adds_no_parameters(config: mhc.Config) -> None:
    assert mhc.explain(made(), (inputs(),), config=config).parameters == 0


@pytest.mark.parametrize("verb", [mhc.explain, mhc.upgrade], ids=["explain", "upgrade"])
def test_an_unknown_projection_is_named(verb: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="projection must be one of 'sinkhorn', 'identity', not 'qr'"):
        verb(made(), (inputs(),), config=mhc.Config(projection="qr"))


# -- as tables --------------------------------------------------------------------------------------------------------

PARTS = ("one & two", Table(("name", "n"), [("<a>", "1"), ("long", "10")]))


def test_parts_as_text() -> None:
    assert as_text(PARTS).splitlines() == ["one & two", "name  n", "----  --", "<a>   1", "long  10"]


def test_parts_as_html() -> None:
    assert as_html(PARTS) == (
        "<p>one &amp; two</p><table><thead><tr><th>name</th><th>n</th></tr></thead><tbody><tr><td>&lt;a&gt;</td>"
        "<td>1</td></tr><tr><td>long</td><td>10</td></tr></tbody></table>"
    )


def test_a_notebook_shows_the_report() -> None:
    report = mhc.explain(made(), (inputs(),))
    shown = report._repr_html_()
    assert shown.startswith("<p>")
    assert "<table>" in shown
    assert all(f"<td>{site.name}</td>" in shown for site in report.sites)
