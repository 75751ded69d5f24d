"""The results as JSON, and the table made from them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.zoo.check import Row
from bench.zoo.family import Family
from bench.zoo.modes import MODES
from bench.zoo.registry import DOMAINS, FAMILIES
from mhc_compile.cli import measure

BENCH = Path(__file__).resolve().parents[1]
RESULTS, TABLE = BENCH / "results" / "zoo.json", BENCH / "results" / "ZOO.md"
HEAD = (
    "family", "expected", "sites", "kept", "regions", "lifts", "other adds",
    "output error", "gradient error", "graphs", "recompiled", "compile, s", "verdict",
)  # fmt: skip
SHORT_HEAD = (
    "family", "expected", "sites", "kept", "output error", "gradient error", "graphs", "recompiled", "verdict",
)  # fmt: skip
PREFACE = """# Model zoo

Written by `python -m bench.zoo` (all of it: `make zoo ARGS=--resume`); do not edit. Each family is built tiny with
random weights, run plain, upgraded, compiled with `backend="mhc"` (aot_eager, on a CPU, fp32) and run forward and
backward.

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
* Modes: evaluation first, by domain; then training (dropout, drop path), LayerDrop and activation checkpointing, of the
  families that have them. The plain run and ours draw the same random numbers.
"""


def line(row: Row) -> str:
    """Return a row for the terminal."""
    errors = f"out {_error(row.output_error)} grad {_error(row.gradient_error)}"
    counts = f"{_text(row.sites)}+{_text(row.kept)} of {row.expected}"
    kept = " ".join(f"{count} {reason}" for reason, count in row.rejections.items() if reason.endswith("*"))
    graphs = f"graphs {_text(row.graphs)} {row.seconds} s"
    return f"{row.verdict:7} {row.mode:10} {row.key:40} {counts:10} {errors} {graphs} {kept} {row.why}"


class Results:
    """The results on disk, where rows of families and modes that do not run stay."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Read what is known; the revision is that of the start."""
        self.environment = measure.environment("cpu") | {"git": revision()}
        self.environment["libraries"] = {name: _version(name) for name in sorted({f.library for f in FAMILIES})}
        self.arguments = dict(arguments)
        self.known = {(f"{row['library']}/{row['name']}", row.get("mode", "eval")): row for row in _load()}

    def has(self, family: Family) -> bool:
        """Tell whether this very revision has a row of the family in its mode."""
        row = self.known.get((family.key, family.mode), {})
        return row.get("git") == self.environment["git"] and not str(row.get("git")).endswith("+")

    def add(self, row: Row) -> None:
        """Write a row to disk."""
        stamp = {name: measure.environment("cpu")[name] for name in ("date", "cpu")} | {"git": self.environment["git"]}
        self.known[row.room] = {**dataclasses.asdict(row), **stamp}
        rooms = [(family.key, mode) for mode in MODES for family in FAMILIES]
        ordered = [self.known[room] for room in rooms if room in self.known]
        payload = {"environment": self.environment, "arguments": self.arguments, "rows": ordered}
        measure.write_json(RESULTS, payload)

    def write_table(self) -> None:
        """Write the table of all rows anew."""
        if RESULTS.exists():
            TABLE.write_text(markdown(), encoding="utf-8")
            print(f"wrote {RESULTS} and {TABLE}")


def revision() -> str | None:
    """Return the checkout's short revision, "+" behind it if files differ that the zoo does not write itself."""
    git = ["git", "-C", str(BENCH.parent)]
    changed = [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RESULTS}", f":!{TABLE}"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(changed, capture_output=True, text=True, check=True)
        return head.stdout.strip() + "+" * bool(dirty.stdout.strip())
    return None


def markdown() -> str:
    """Return the tables: evaluation by domain, then the other modes, with what failed on top."""
    data = json.loads(RESULTS.read_text("utf-8"))
    fields = {field.name for field in dataclasses.fields(Row)}
    rows = {r.room: r for r in (Row(**{k: v for k, v in row.items() if k in fields}) for row in data["rows"])}
    revisions = Counter(str(row.get("git")) for row in data["rows"])
    parts = [_preface(data["environment"], [row for row in rows.values() if row.verdict != "none"], revisions)]
    for domain, families in DOMAINS.items():
        members = [rows[family.key, "eval"] for family in families if (family.key, "eval") in rows]
        if members:
            parts.append(f"## {domain}\n\n{_table(HEAD, map(_cells, members))}")
            notes = [f"* {row.name}: {row.note}" for row in members if row.note]
            parts += ["\n".join(notes)] if notes else []
    for mode, about in list(MODES.items())[1:]:
        members = [row for (_, of), row in rows.items() if of == mode and row.verdict != "none"]
        if members:
            title = f"## Mode {mode}\n\n{about[0].upper()}{about[1:]}."
            parts.append(f"{title}\n\n{_table(SHORT_HEAD, map(_short_cells, members))}")
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _preface(environment: Mapping[str, Any], rows: Sequence[Row], revisions: Mapping[str, int]) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in environment["libraries"].items() if version)
    told = ", ".join(f"{git} ({count} rows)" for git, count in revisions.items())
    return "\n".join(
        [
            PREFACE,
            "\n\n".join(_sums(mode, [row for row in rows if row.mode == mode]) for mode in MODES).strip(),
            "",
            f"Last measured {environment['date']} on {environment['cpu']}, Python {environment['python']},"
            f" torch {environment['versions']['torch']}; {libraries}. Revision"
            f" {'of every row: ' + next(iter(revisions)) if len(revisions) == 1 else 'of the rows: ' + told}.",
            *_failures(rows),
        ]
    )


def _sums(mode: str, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    passed = sum(row.verdict == "pass" for row in rows)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(row.verdict for row in rows).most_common())
    sites, kept = (sum(getattr(row, name) or 0 for row in rows) for name in ("sites", "kept"))
    where = "" if mode == "eval" else f" in mode {mode}"
    return f"**{passed} of {len(rows)} families pass**{where} ({verdicts}); {sites} connections rewritten, {kept} kept."


def _failures(rows: Sequence[Row]) -> list[str]:
    failed = [f"| {row.key} | {row.mode} | {row.verdict} | {_cell(row.why)} |" for row in rows if row.verdict != "pass"]
    return ["", "| does not pass | mode | verdict | why |", "| --- | --- | --- | --- |", *failed] if failed else []


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


def _short_cells(row: Row) -> list[str]:
    cells = dict(zip(HEAD, _cells(row), strict=True)) | {"family": row.key}
    return [cells[name] for name in SHORT_HEAD]


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
