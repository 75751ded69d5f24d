"""The page: one file with its data, its style and the library that draws it. It asks the network for nothing."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mhc_compile.cli.report import charts, tables
from mhc_compile.cli.report.runs import Run

_HERE = Path(__file__).parent
# the browser itself keeps the page from asking: scripts and styles are those of the page, and nothing else is loaded
_POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"


def made(runs: Sequence[Run]) -> str:
    """Return the page of some runs as HTML."""
    import vl_convert

    bundle: Any = vl_convert.javascript_bundle  # its types lack the default
    specs: dict[str, charts.Spec] = {}
    body = "".join(_body(runs, specs))
    title = f"mHC: {', '.join(run.name for run in runs)}"
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">',
            f"<title>{tables.text(title)}</title>",
            f"<style>{(_HERE / 'page.css').read_text('utf-8')}</style>",
            f"</head><body><main>{body}</main>",
            f'<script type="application/json" id="specs">{_as_script(specs)}</script>',
            f"<script>{_closed(bundle())}</script>",
            f"<script>{(_HERE / 'page.js').read_text('utf-8')}</script>",
            "</body></html>",
        )
    )


def _body(runs: Sequence[Run], specs: dict[str, charts.Spec]) -> Iterator[str]:
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    yield f"<header><h1>What the streams do</h1><p class=quiet>mhc_compile report, {now}</p></header>"
    yield f"<section>{tables.overview(runs)}{''.join(_notes(runs))}</section>"
    yield "<section><h2>Training</h2><div class=pair>"
    yield _chart(specs, "loss", charts.loss(runs), "Loss")
    yield _chart(specs, "gradient-norm", charts.gradient_norm(runs), "Gradient norms, model and mHC apart")
    yield "</div></section><section><h2>Gains</h2>"
    yield (
        "<p>By how much the residual path alone amplifies: a signal that all streams share (forward, largest |row sum|"
        " of H<sub>res</sub>) and its gradient (backward, largest |column sum|), mean over tokens. Composite: of the"
        " product from a site to the end of its region. Doubly stochastic maps keep all of them at 1.</p>"
        "<div class=pair>"
    )
    yield _chart(specs, "composite-gain", charts.composite_gain(runs), "Largest composite gain, over training")
    yield _chart(specs, "gain-by-site", charts.gain_by_site(runs), "Gain by site; the larger of forward and backward")
    yield "</div></section><section><h2>Streams</h2>"
    yield "<p>Spread is 0 where all streams are equal, as at the start; streams that stay equal do the work of one.</p>"
    yield _chart(specs, "spread", charts.spread(runs), "Largest spread, over training")
    yield "</section>"
    for number, run in enumerate(runs):
        yield from _of_run(run, number, specs)


def _of_run(run: Run, number: int, specs: dict[str, charts.Spec]) -> Iterator[str]:
    yield f"<section><h2><span class=dot style='background:{charts.COLORS[number % len(charts.COLORS)]}'></span>"
    yield f"{tables.text(run.name)}</h2>"
    if run.looks:
        yield (
            "<h3>H<sub>res</sub> of every site, in the order of the program</h3><p>Averaged over tokens; row i makes"
            " the new stream i. Blue is positive, orange negative, the stronger the larger; hover for numbers.</p>"
        )
        yield _chart(specs, f"matrices-{number}", charts.matrices(run), "", kind="matrices")
        yield f"<details><summary>Every site at the last look</summary>{tables.sites(run)}</details>"
    yield f"<details><summary>Map of the model</summary>{tables.model_map(run)}</details>"
    yield f"<details><summary>Parameters, memory, kernels, options</summary>{tables.setup(run)}</details></section>"


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        for kind, texts in (("warning", run.warnings), ("note", run.notes)):
            yield from (f"<p class={kind}><b>{tables.text(run.name)}</b> {tables.text(each)}</p>" for each in texts)


def _chart(specs: dict[str, charts.Spec], name: str, spec: charts.Spec, title: str, kind: str = "plot") -> str:
    """Return the place of a chart, or that there is nothing to show."""
    caption = f"<figcaption>{tables.text(title)}</figcaption>" if title else ""
    if not spec["data"]["values"]:
        return f"<figure>{caption}<p class=quiet>nothing was written of this</p></figure>"
    specs[name] = spec
    return f'<figure>{caption}<div class="chart {kind}" id="{name}"></div></figure>'


def _as_script(value: Any) -> str:
    """Return JSON that no text within can end the script of."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _closed(script: str) -> str:
    return script.replace("</script", "<\\/script")
