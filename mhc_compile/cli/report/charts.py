"""Plots of runs, as Vega-Lite specifications: plain data, which the page hands to the library that it carries."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mhc_compile.cli.report.runs import MOST_LOOKS, MOST_POINTS, Run, finite, thinned, worst

Spec = dict[str, Any]
Row = dict[str, Any]
COLORS = ("#2f7ed8", "#e8710a", "#1a9e77", "#c2408f", "#8064c8", "#b58900", "#4fb0c6", "#8c6d5a")


@dataclasses.dataclass(frozen=True)
class Line:
    """What a plot of lines shows.

    Attributes:
        y: name of the value; where it is None the line has a gap.
        title: of the value's axis.
        log: a logarithmic axis, where the values span a factor of 10.
        kinds: name and values of what tells lines of one run apart; the second is dashed.
        format: of the value's axis.
        x: title of the other axis, whose field is `step`.
        told: names of what hovering tells, besides the value.
    """

    y: str
    title: str
    log: bool = False
    kinds: tuple[str, str, str] | None = None
    format: str = "~g"
    x: str = "step"
    told: tuple[str, ...] = ("run", "step")


def lines(rows: list[Row], line: Line) -> Spec:
    """Return a plot with a line for each run; hovering tells the numbers of the nearest point.

    Args:
        rows: with `run`, `step`, the value and, where given, the kind.
        line: what they are.
    """
    y, format_x = line.y, "~s" if line.x == "step" else "d"
    encoding: Row = {
        "x": {"field": "step", "type": "quantitative", "title": line.x, "axis": {"format": format_x, "tickMinStep": 1}},
        "y": {
            "field": y, "type": "quantitative", "title": line.title, "scale": _scale(rows, line),
            "axis": {"format": line.format},
        },
        "color": _by_run(rows),
    }  # fmt: skip
    dashes: Row = {}
    told = [*line.told]
    if line.kinds:
        kind, *values = line.kinds
        told.append(kind)
        scale = {"domain": values, "range": [[1, 0], [4, 3]]}
        legend = {"symbolStrokeColor": "#8a94a3", "symbolStrokeWidth": 1.8, "symbolFillColor": "transparent"}
        dashes = {"strokeDash": {"field": kind, "type": "nominal", "title": None, "scale": scale, "legend": legend}}
    tooltip = [{"field": name} for name in told]
    shown = {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0}
    return {
        "data": {"values": rows},
        "width": "container",
        "height": 240,
        "encoding": encoding,
        "layer": [
            {
                "mark": {"type": "line", "strokeWidth": 1.8, "invalid": "break-paths-filter-domains"},
                "encoding": dashes,
            },
            {
                "params": [_nearest()],
                "mark": {"type": "point", "size": 45, "filled": True, "invalid": "filter"},
                "encoding": {"opacity": shown, "tooltip": [*tooltip, {"field": y, "format": ".5~g"}]},
            },
        ],
    }


def _scale(rows: Sequence[Row], line: Line) -> Row:
    """Return a logarithmic scale, where there is something to show on one."""
    values = [row[line.y] for row in rows if row[line.y] is not None]
    if line.log and values and max(values) > 10 * min(values) > 0:
        return {"type": "log"}
    if line.log and values:  # gains that are 1 or nearly
        return {"zero": False, "domain": [min(0.9, *values), max(1.5, *values)]}
    return {"zero": False}


def _nearest() -> Row:
    return {"name": "hover", "select": {"type": "point", "on": "pointermove", "nearest": True, "clear": "pointerout"}}


def _by_run(rows: Sequence[Row]) -> Row:
    names = list(dict.fromkeys(row["run"] for row in rows))
    colors = [COLORS[i % len(COLORS)] for i in range(len(names))]
    return {"field": "run", "type": "nominal", "title": None, "scale": {"domain": names, "range": colors}}


# -- over steps -------------------------------------------------------------------------------------------------------


def over_steps(runs: Sequence[Run], value: Callable[[Row], Any], name: str) -> list[Row]:
    """Return a row for each step of each run at which there is such a value."""
    found = []
    for run in runs:
        known = [(record["step"], given) for record in run.steps if (given := value(record)) is not None]
        rows = [{"run": run.name, "step": step, name: finite(given)} for step, given in known]
        found += thinned(rows, MOST_POINTS)
    return found


def loss(runs: Sequence[Run]) -> Spec:
    """Return the loss over steps."""
    return lines(over_steps(runs, lambda record: record.get("loss"), "loss"), Line("loss", "loss"))


def gradient_norm(runs: Sequence[Run]) -> Spec:
    """Return the norms of the gradients of model and mHC parameters over steps."""
    rows, words = [], ("model", "mHC parameters")
    for part, word in zip(("model", "mhc"), words, strict=True):
        found = over_steps(runs, functools.partial(_norm, part=part), "norm")
        rows += [{**row, "of": word, "norm": row["norm"] or None} for row in found]  # 0 has no logarithm
    return lines(rows, Line("norm", "gradient norm", log=True, kinds=("of", *words)))


def _norm(record: Row, part: str) -> Any:
    return record.get("grad_norm", {}).get(part)


def composite_gain(runs: Sequence[Run]) -> Spec:
    """Return the largest composite gain of all sites over steps, forward and backward."""
    rows, ways = [], ("forward", "backward")
    for way in ways:
        found = over_steps(runs, functools.partial(_worst, column=f"composite_{way}"), "gain")
        rows += [{**row, "way": way, "gain": row["gain"] or None} for row in found]
    return lines(rows, Line("gain", "largest composite gain", log=True, kinds=("way", *ways)))


def spread(runs: Sequence[Run]) -> Spec:
    """Return the largest spread of all sites over steps."""
    rows = over_steps(runs, functools.partial(_worst, column="spread"), "spread")
    shown = [{**row, "spread": row["spread"] or None} for row in rows]
    return lines(shown, Line("spread", "largest spread", log=True, format="~e"))


def _worst(record: Row, column: str) -> Any:
    sites = record.get("sites", {})
    return None if not sites.get("name") else (worst(sites[column]) or float("nan"))


# -- over sites -------------------------------------------------------------------------------------------------------


def gain_by_site(runs: Sequence[Run]) -> Spec:
    """Return single and composite gains of every site at the last look, the larger of forward and backward."""
    rows: list[Row] = []
    kinds = ("to the end of its region", "single")
    for run in runs:
        sites = run.last
        for i, name in enumerate(sites.get("name", ())):
            for kind, prefix in zip(kinds, ("composite_", ""), strict=True):
                gain = worst(sites[f"{prefix}{way}"][i] for way in ("forward", "backward"))
                rows.append({"run": run.name, "step": i + 1, "site": name, "map": kind, "gain": gain or None})
    told = ("run", "site")
    return lines(rows, Line("gain", "gain", log=True, kinds=("map", *kinds), x="site", told=told))


def matrices(run: Run) -> Spec:
    """Return H_res of every site at one look, single or composite, averaged over tokens (paper, Fig. 8).

    The page says how many stand in a row (`columns`) and how wide that is; a slider and a switch choose look and kind.
    """
    rows = list(_matrices(run))
    steps = list(dict.fromkeys(row["step"] for row in rows))
    n, sites = len(rows[0]["h"]) if rows else 1, 1 + max((row["site"] for row in rows), default=0)
    kinds = ["single", "to the end of the region"]
    place = [
        {"calculate": f"datum.site % columns * {n + 1}", "as": "left"},
        {"calculate": f"floor(datum.site / columns) * {n + 1.6}", "as": "top"},
    ]
    return {
        "data": {"values": rows},
        "params": [
            {"name": "columns", "value": 12},
            {"name": "look", "value": max(0, len(steps) - 1), "bind": _slider(len(steps))},
            {"name": "kind", "value": kinds[0], "bind": {"input": "radio", "options": kinds, "name": "H_res "}},
        ],
        "transform": [{"filter": "datum.look == look && datum.kind == kind"}, *place],
        "layer": [_cells(), _numbers(n)],
        "usermeta": {"n": n, "size": _size(n, sites), "sites": sites, "steps": steps},
    }


def _cells() -> Spec:
    """Return a rectangle for every entry: its sign is the color, its size the strength."""
    strength = {"domain": [0, 1], "range": [0, 1]}
    signs = {"domain": ["positive", "negative"], "range": [COLORS[0], COLORS[1]]}
    return {
        "transform": [
            {"calculate": "sequence(length(datum.h))", "as": "i"},
            {"flatten": ["h", "i", "row_sums"], "as": ["line", "i", "row_sum"]},
            {"calculate": "sequence(length(datum.line))", "as": "j"},
            {"flatten": ["line", "j", "column_sums"], "as": ["value", "j", "column_sum"]},
            {"calculate": "datum.value < 0 ? 'negative' : 'positive'", "as": "sign"},
            {"calculate": "max(0.05, min(1, abs(datum.value) / datum.most))", "as": "strength"},
            *_edges("x", "left", "j"),
            *_edges("y", "top", "i"),
        ],
        "mark": {"type": "rect", "cornerRadius": 1},
        "encoding": {
            "x": _position("x"),
            "x2": {"field": "x2"},
            "y": _position("y"),
            "y2": {"field": "y2"},
            "color": {"field": "sign", "type": "nominal", "legend": None, "scale": signs},
            "opacity": {"field": "strength", "type": "quantitative", "legend": None, "scale": strength},
            "tooltip": _told(),
        },
    }


def _numbers(n: int) -> Spec:
    """Return the number of every site, below its matrix."""
    return {
        "transform": [
            {"calculate": f"datum.left + {n / 2}", "as": "x"},
            {"calculate": f"datum.top + {n + 0.65}", "as": "y"},
            {"calculate": "datum.site + 1", "as": "label"},
        ],
        "mark": {"type": "text", "fontSize": 9, "opacity": 0.6},
        "encoding": {"x": _position("x"), "y": _position("y"), "text": {"field": "label"}},
    }


def _size(n: int, sites: int) -> int:
    """Return the side of a cell in pixels: 40 matrices and more are small, and so are large ones."""
    return max(4, (12 if sites > 24 else 17) * 4 // max(4, n))


def _position(axis: str) -> Row:
    """Return a position in cells; the page sets the domain with the size."""
    return {"field": axis, "type": "quantitative", "axis": None, "scale": {"nice": False, "reverse": axis == "y"}}


def _edges(axis: str, corner: str, index: str) -> list[Row]:
    """Return where a cell begins and ends, with a hair between cells."""
    return [
        {"calculate": f"datum.{corner} + datum.{index} + 0.03", "as": axis},
        {"calculate": f"datum.{axis} + 0.94", "as": f"{axis}2"},
    ]


def _told() -> list[Row]:
    told = {"site": "name", "step": "step", "row": "i", "column": "j"}
    numbers = {"H_res": "value", "row sum": "row_sum", "column sum": "column_sum"}
    return [
        *({"field": field, "title": title} for title, field in told.items()),
        *({"field": field, "title": title, "format": ".4~g"} for title, field in numbers.items()),
    ]


def _slider(looks: int) -> Row:
    return {"input": "range", "min": 0, "max": max(0, looks - 1), "step": 1, "name": "look "}


def _matrices(run: Run) -> Iterator[Row]:
    for look, record in enumerate(thinned(run.looks, MOST_LOOKS)):
        sites = record["sites"]
        for kind, column in (("single", "h_res"), ("to the end of the region", "composite")):
            shown = [_rounded(matrix) for matrix in sites[column]]
            most = max(
                (abs(value) for matrix in shown for line in matrix for value in line if value is not None), default=1
            )
            for i, matrix in enumerate(shown):
                yield {
                    "look": look, "step": record["step"], "kind": kind, "site": i, "name": sites["name"][i],
                    "most": max(1.0, most), "h": matrix, "row_sums": _sums(matrix),
                    "column_sums": _sums(list(zip(*matrix, strict=True))),
                }  # fmt: skip


def _rounded(matrix: Sequence[Sequence[Any]]) -> list[list[float | None]]:
    return [[None if (held := finite(value)) is None else float(f"{held:.4g}") for value in line] for line in matrix]


def _sums(matrix: Sequence[Sequence[float | None]]) -> list[float | None]:
    return [None if None in line else float(f"{sum(v for v in line if v is not None):.5g}") for line in matrix]
