"""The results as JSON, and the table made from them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.zoo.check import Row
from bench.zoo.registry import DOMAINS, FAMILIES
from mhc_compile.cli import measure

BENCH = Path(__file__).resolve().parents[1]
RESULTS, TABLE = BENCH / "results" / "zoo.json", BENCH / "ZOO.md"
HEAD = (
    "family", "expected", "sites", "kept", "regions", "lifts", "other adds",
    "output error", "gradient error", "graphs", "recompiled", "compile, s", "verdict",
)  # fmt: skip
PREFACE = """# Model zoo

Written by `python -m bench.zoo`; do not edit. Each family is built tiny with random weights, run plain, upgraded,
compiled with `backend="mhc"` (aot_eager, on a CPU, fp32) and run forward and backward.

* *expected*: residual connections of one forward, counted by hand from the library's source; *sites*: those that were
  rewritten; *kept*: those that were found and left alone, marked * among the other adds. The count is right when
  sites + kept = expected.
* *output error*, *gradient error*: largest difference to the plain model, over the largest entry; at most 1e-5 and
  1e-4, or three times what torch.compile does to the plain model, or ten times its rounding (float32 against float64).
  Gradients are those of the model's own parameters for random upstream gradients.
* *compile*: seconds of the first call with backward; "eager" where AOTAutograd cannot compile the plain model either.
* *recompiled*: graphs that a second call of the same shapes compiled. A family passes only if its outputs also move
  with the parameters of mHC and every such parameter has a gradient.
* Verdict *cut*: Dynamo breaks the model inside its layers, so that skip and sum stand in different graphs; `explain`
  names the lines. *count*, *value* and *error* are ours; *torch*: torch.compile fails on the plain model too;
  *library*: the plain model does not run as the zoo builds it.
"""


def line(row: Row) -> str:
    """Return a row for the terminal."""
    errors = f"out {_error(row.output_error)} grad {_error(row.gradient_error)}"
    counts = f"{_text(row.sites)}+{_text(row.kept)} of {row.expected}"
    kept = " ".join(f"{count} {reason}" for reason, count in row.rejections.items() if reason.endswith("*"))
    return (
        f"{row.verdict:7} {row.key:40} {counts:10} {errors} graphs {_text(row.graphs)} {row.seconds} s {kept} {row.why}"
    )


def save(rows: Sequence[Row], arguments: Mapping[str, Any]) -> None:
    """Put the rows into the results, where rows of families that did not run stay, and write the table anew."""
    environment = measure.environment("cpu")
    stamp = {"date": environment["date"], "git": environment["git"]}
    known = {f"{row['library']}/{row['name']}": row for row in _load()}
    known |= {row.key: {**dataclasses.asdict(row), **stamp} for row in rows}
    environment["libraries"] = {name: _version(name) for name in sorted({f.library for f in FAMILIES})}
    ordered = [known[family.key] for family in FAMILIES if family.key in known]
    measure.write_json(RESULTS, {"environment": environment, "arguments": dict(arguments), "rows": ordered})
    TABLE.write_text(markdown(), encoding="utf-8")
    print(f"wrote {RESULTS} and {TABLE}")


def markdown() -> str:
    """Return the table, by domain, with what failed on top."""
    data = json.loads(RESULTS.read_text("utf-8"))
    fields = {field.name for field in dataclasses.fields(Row)}
    rows = {r.key: r for r in (Row(**{k: v for k, v in row.items() if k in fields}) for row in data["rows"])}
    parts = [_preface(data["environment"], list(rows.values()))]
    for domain, families in DOMAINS.items():
        members = [rows[family.key] for family in families if family.key in rows]
        if members:
            lines = [HEAD, ["---"] * len(HEAD), *map(_cells, members)]
            parts.append(f"## {domain}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines))
            notes = [f"* {row.name}: {row.note}" for row in members if row.note]
            parts += ["\n".join(notes)] if notes else []
    return "\n\n".join(parts) + "\n"


def _preface(environment: Mapping[str, Any], rows: Sequence[Row]) -> str:
    passed = sum(row.verdict == "pass" for row in rows)
    libraries = ", ".join(f"{name} {version}" for name, version in environment["libraries"].items() if version)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(row.verdict for row in rows).most_common())
    sites, kept = (sum(getattr(row, name) or 0 for row in rows) for name in ("sites", "kept"))
    return "\n".join(
        [
            PREFACE,
            f"**{passed} of {len(rows)} families pass** ({verdicts}); {sites} connections rewritten, {kept} kept.",
            "",
            f"Last measured {environment['date']} on {environment['cpu']}, Python {environment['python']},"
            f" torch {environment['versions']['torch']}; {libraries}. zoo.json has the date of each row.",
            *_failures(rows),
        ]
    )


def _failures(rows: Sequence[Row]) -> list[str]:
    failed = [f"| {row.key} | {row.verdict} | {_cell(row.why)} |" for row in rows if row.verdict != "pass"]
    return ["", "| does not pass | verdict | why |", "| --- | --- | --- |", *failed] if failed else []


def _cells(row: Row) -> list[str]:
    made_of = " + ".join(f"{count} {name}" for name, count in row.parts.items())
    others = ", ".join(f"{count} {reason}" for reason, count in row.rejections.items())
    seconds = "" if row.compile_seconds is None else f"{row.compile_seconds:.1f}"
    seconds += " eager" if row.compiler == "eager" else ""
    return [
        row.name,
        f"{row.expected} = {made_of}" if len(row.parts) > 1 else f"{made_of or 0}",
        _text(row.sites), _text(row.kept), _text(row.regions), ", ".join(row.lifts), others,
        _error(row.output_error), _error(row.gradient_error), _text(row.graphs), _text(row.recompilations), seconds,
        row.verdict if row.verdict == "pass" else f"**{row.verdict}**: {_cell(row.why)}",
    ]  # fmt: skip


def _load() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text("utf-8"))["rows"] if RESULTS.exists() else []
    return rows


def _text(number: int | None) -> str:
    return "" if number is None else str(number)


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.0e}" if error else "0"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
