"""tables: lines and tables as text and as HTML, escaped."""

from __future__ import annotations

import mhc_compile as mhc
from mhc_compile.api.tables import Table, as_html, as_text
from tests.nets.small import inputs, made

PARTS = ("one & two", Table(("name", "n"), [("<a>", "1"), ("long", "10")]))


def test_text() -> None:
    assert as_text(PARTS).splitlines() == ["one & two", "name  n", "----  --", "<a>   1", "long  10"]


def test_html() -> None:
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
