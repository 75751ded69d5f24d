"""The tables of docs/benchmarks.md, from the JSON in bench/results; `python -m tests.project.documents` puts them in.

Nothing here is typed by hand: what is measured anew and committed changes the page, and a test compares the two.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.common import RESULTS
from bench.train.measures import TIMED

Row = dict[str, Any]
Result = dict[str, Any]
PLAIN, OURS = "plain", "mhc"
NOISY = 0.5  # wider quartiles of a ratio say nothing of the machine at rest


def results(pattern: str, folder: Path = RESULTS) -> list[tuple[str, Result]]:
    """Return the results whose file's name matches, with the name."""
    return [(path.name, json.loads(path.read_text("utf-8"))) for path in sorted(folder.glob(pattern))]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown whose first column is text."""
    rule = ["---", *("---:" for _ in heads[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def where(result: Result) -> str:
    """Say on what a result was measured, and at which revision."""
    of = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in of["versions"].items() if version and name != "numpy")
    machine = of["device"] if of["device"] != "cpu" else f"{of['cpu']}, {of['threads']} threads"
    load = f", load {of['load']:.1f}" if of.get("load") is not None else ""
    return f"{machine}{load}; {versions}; {of['date'][:10]}, revision {of['git']}."


# -- training and inference -------------------------------------------------------------------------------------------


def field() -> str:
    """Return a table for every size and dtype that `bench.train` measured, and what follows from them."""
    found = results("train-*-*-*.json")
    found.sort(key=lambda one: (one[1]["environment"]["device"], one[1]["arguments"]["dtype"] != "float32",
                                one[1]["arguments"]["hidden"]))  # fmt: skip
    return "\n\n".join(part for _, result in found for part in _size(result)) or "Nothing has been measured yet."


def _size(result: Result) -> Iterator[str]:
    of, rows = result["arguments"], result["rows"]
    yield (
        f"### {of['hidden']} features, {of['layers']} layers, {of['dtype']}\n\n"
        f"{of['batch']} x {of['length']} tokens in training, 1 x {of['prompt']} in prefill, one behind them in decode, "
        f"{of['streams']} streams. {where(result)}"
    )
    right = [row for row in rows if row.get("times")]
    plain = next(row for row in rows if row["name"] == PLAIN)
    extra = [head for head, key in (("compile", "compile"), ("memory", "memory")) if any(key in row for row in right)]
    yield table(["", *TIMED, *extra, "saved"], [_cells(row, plain, extra) for row in right])
    notes = [*_noise(right), *_against_plain(right), *_faster(right), *_refused(rows)]
    if notes:
        yield "\n".join(f"* {note}" for note in notes)


def _cells(row: Row, plain: Row, extra: Sequence[str]) -> list[str]:
    version = f" {row['version']}" if row["version"] else ""
    cells = [f"{row['name']}{version}{' (eager)' if row['eager'] else ''}"]
    cells += [_timing(row["times"].get(name), row is plain) for name in TIMED]
    for key in extra:
        found = row.get(key)
        if found is None:
            cells.append("")
        elif row is plain:
            cells.append(_seconds(found["compile_seconds"]) if key == "compile" else _mega(found["peak_bytes"]))
        else:
            cells.append(f"{found['ratio']:.2f}")
    saved = row["saved_bytes"]
    return [*cells, _mega(saved) if row is plain else f"{saved / plain['saved_bytes']:.2f}"]


def _timing(timing: Row | None, absolute: bool) -> str:
    if timing is None:
        return ""
    ratio = f"{timing['ratio']:.2f} ({timing['ratio_low']:.2f} to {timing['ratio_high']:.2f})"
    return _seconds(timing["median"]) if absolute else ratio


def _noisy(timing: Row) -> bool:
    return bool(timing["ratio_high"] - timing["ratio_low"] > NOISY)


def _noise(right: Sequence[Row]) -> Iterator[str]:
    for name in TIMED:
        rows = [row["name"] for row in right if name in row["times"] and _noisy(row["times"][name])]
        if rows:
            yield f"{name}: too noisy to judge {', '.join(rows)}, whose quartiles are more than {NOISY} apart."


def _ratios(row: Row) -> dict[str, float]:
    found = {name: timing["ratio"] for name, timing in row["times"].items() if not _noisy(timing)}
    return found | {key: row[key]["ratio"] for key in ("compile", "memory") if key in row}


def _against_plain(right: Sequence[Row]) -> Iterator[str]:
    ours = next((row for row in right if row["name"] == OURS), None)
    if ours is None:
        return
    ratios = _ratios(ours)
    dearer = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items() if ratio > 1)
    cheaper = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items() if ratio <= 1)
    yield f"mhc costs more than plain in: {dearer or 'nothing'}; no more in: {cheaper or 'nothing'}."


def _faster(right: Sequence[Row]) -> Iterator[str]:
    ours = next((row for row in right if row["name"] == OURS), None)
    peers = [row for row in right if row["library"]]
    for name, ratio in _ratios(ours).items() if ours else ():
        best = min(peers, key=lambda row: _ratios(row).get(name, float("inf")), default=None)
        if best is None or name not in _ratios(best):
            continue
        theirs = _ratios(best)[name]
        if theirs < ratio:
            yield f"**{name}: {best['name']} is ahead of mhc**, {theirs:.2f} against {ratio:.2f}."
        elif name == TIMED[0]:
            share = f"{(ratio - 1) / (theirs - 1):.0%}" if theirs > 1 else "more than all"
            yield f"{name}: what mhc adds to plain is {share} of what the best other library, {best['name']}, adds."


def _refused(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row["why"]:
            yield f"{row['name']} has no speed: {row['why']}."
        elif row["eager"]:
            yield f"{row['name']}: {row['eager']}"


# -- the other benchmarks ---------------------------------------------------------------------------------------------


def compiling() -> str:
    """Return the table of `bench.compile_time`."""
    return _each("compile_time-*.json", _compiling)


def _compiling(result: Result) -> str:
    rows = [
        (
            f"{row['case']}, {row['caches']} caches, {row.get('name') or row['backend']}",
            _seconds(row["compile_seconds"]),
            f"{row['ratio']:.2f}",
            _seconds(row["upgrade_seconds"]) if row["upgrade_seconds"] else "",
            str(row["graphs"]),
        )
        for row in result["rows"]
    ]
    return table(("", "compile", "of plain", "upgrade", "graphs"), rows)


def memory() -> str:
    """Return the tables of `bench.memory`."""
    return _each("memory-*.json", _memory)


def _memory(result: Result) -> str:
    of, rows = result["arguments"], result["rows"]
    plain = next(row for row in rows if row["name"] == PLAIN)
    cells = [
        (row["name"], *(f"{_mega(row[key])} ({row[key] / plain[key]:.2f})" for key in ("saved", "peak", "step_adds")))
        for row in rows
    ]
    kernels = {"auto": "with kernels", "reference": "without kernels", None: "before there were kernels"}
    shape = f"{of['model']}, {of['hidden']} features, {of['layers']} layers, {of['batch']} x {of['length']} tokens"
    title = f"{shape}, {of['dtype']}, {kernels.get(of.get('kernels'), of.get('kernels'))}."
    return f"{title}\n\n{table(('', 'saved for backward', 'resident at the peak', 'a step adds'), cells)}"


def passes() -> str:
    """Return the table of `bench.compile_time.passes`."""
    return _each("rewrite_cost-*.json", _passes)


def _passes(result: Result) -> str:
    rows = [
        (str(row["layers"]), _seconds(row["tracing_seconds"]), _seconds(row["passes_seconds"]),
         f"{row['passes_seconds'] / row['tracing_seconds']:.1%}")
        for row in result["rows"]
    ]  # fmt: skip
    return table(("layers", "Dynamo's tracing", "passes", "share"), rows)


def gpu() -> str:
    """Return whole sites on GPUs, ours and other libraries', as `bench/gpu.sh` measured them."""
    return _each("kernels-*.json", _gpu)


def _gpu(result: Result) -> str:
    steps = result["rows"]
    rows = [*steps.get("time", {}).get("rows", {}).get("sites", []), *steps.get("peers", {}).get("rows", [])]
    cells = [
        (
            f"{row['contender']}, n = {row['n']}, C = {row['channels']}",
            _seconds(row["forward"]["seconds"]) if row["forward"]["seconds"] else "",
            _seconds(row["both"]["seconds"]) if row["both"]["seconds"] else "",
            row["why"].replace("|", "/")[:80],
        )
        for row in rows
    ]
    return table(("site", "forward", "forward + backward", "why not"), cells)


def seams() -> str:
    """Return the table of `bench.kernels --device cpu`."""
    return _each("seams-*.json", _seams)


def _seams(result: Result) -> str:
    parts = ("forward", "backward")
    rows = [
        (
            f"C = {row['channels']}, {row['dtype']}, {row['threads']} thread{'s' * (row['threads'] > 1)}",
            *(_seconds(row[name]["median"]) for name in ("copy", *parts)),
            *(f"{row[name]['ratio']:.1f}" for name in parts),
        )
        for row in result["rows"]
    ]
    return table(("", "a copy", *parts, *(f"{name} / copy" for name in parts)), rows)


def zoo() -> str:
    """Return how many architectures of each library pass."""
    return _each("zoo.json", _zoo)


def _zoo(result: Result) -> str:
    modes = dict.fromkeys(row.get("mode", "eval") for row in result["rows"])
    cells: dict[str, Counter[tuple[str, bool]]] = {name: Counter() for name in sorted({*_libraries(result)})}
    for row, library in zip(result["rows"], _libraries(result), strict=True):
        if row["verdict"] != "none":  # the family has no such switch
            cells[library][row.get("mode", "eval"), row["verdict"] == "pass"] += 1
    cells["all"] = sum(cells.values(), Counter())
    rows = [
        (name, *(f"{counts[mode, True]} of {counts[mode, True] + counts[mode, False]}" for mode in modes))
        for name, counts in cells.items()
    ]
    return table(("passes", *modes), rows)


def versions() -> str:
    """Return what `tests.versions` recorded under each torch."""
    found = [row for _, result in results("versions.json") for row in result["rows"]]
    heads = ("torch", "triton", "Python", "tests", "passed", "failed", "on")
    rows = [
        (row["torch"], row["triton"], row["python"], row["tests"], str(row["passed"]),
         "<br>".join(f"`{name}`" for name in row["failed"]) or "0", f"{row['date'][:10]}, {row['git']}")
        for row in found
    ]  # fmt: skip
    return table(heads, rows) if rows else "Nothing has been measured yet."


def _libraries(result: Result) -> list[str]:
    return [row["library"] for row in result["rows"]]


def _each(pattern: str, made: Callable[[Result], str]) -> str:
    found = results(pattern)
    return "\n\n".join(f"{where(result)}\n\n{made(result)}" for _, result in found) or "Nothing has been measured yet."


def _seconds(value: float) -> str:
    unit, scale = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3)) if value >= s), ("us", 1e-6))
    return f"{value / scale:.3g} {unit}"


def _mega(value: float) -> str:
    return f"{value / 1e6:,.0f} MB"


MAKERS: dict[str, Callable[[], str]] = {
    "the field": field,
    "compile time": compiling,
    "memory": memory,
    "passes": passes,
    "sites on GPUs": gpu,
    "seams on CPUs": seams,
    "zoo": zoo,
    "versions": versions,
}
