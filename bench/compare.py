"""Two results side by side: `python -m bench.compare OLD [NEW]`; exit status 1 if something regressed.

OLD and NEW are JSON files of any benchmark, folders of them, or git revisions (their bench/results). NEW is
bench/results by default. What has a ratio to something of its own run is compared by that ratio, since the machine may
have been slower. A band is a run's quartiles or, of what was measured once, a tolerance; a regression is a band wholly
above the old one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import RESULTS, show

ROOT = RESULTS.parents[1]
LEAST = 0.02  # a smaller change is none, however narrow the bands
SIZES, ONCE = 0.02, 0.25  # tolerances: of bytes and counts, and of seconds that were measured once

# What names a row of a list, in this order.
NAMES = tuple("library name case caches backend contender op direction n channels dtype norm layers".split())
# Details of a measurement that is compared as a whole, and what carries no cost.
LEFT_OUT = set(
    "samples phases_seconds passes steps_seconds plan products before resident tried own tiles checked time tensors "
    "host kernels date baseline".split()
)
COUNTS = {"saved", "parameters", "graphs", "sites"}
GOOD = {"pass", "right"}  # verdicts


@dataclass(frozen=True)
class Cost:
    """A quantity that had better be small, and its band; or a verdict, whose value is 0 or 1, with what it says."""

    value: float
    low: float
    high: float
    unit: str = ""  # "x", "s", "B", "" for counts, "verdict"
    text: str = ""


def costs(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Cost]]:
    """Iterate over the quantities in the rows of a result, with their names."""
    if isinstance(node, list):
        for label, row in labelled(node):
            yield from costs(row, (*path, label))
    elif isinstance(node, dict):
        found = banded(node)
        if found is not None:
            yield " / ".join(path), found
            return
        for key, value in node.items():
            if key in LEFT_OUT or key.startswith("ratio"):
                continue
            cost = single(key, value, node)
            if cost is not None:
                yield " / ".join((*path, key)), cost
            elif isinstance(value, dict | list):
                yield from costs(value, (*path, key))


def labelled(rows: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Name the rows of a list by what they are, not by their place."""
    seen: dict[str, int] = {}
    for row in rows:
        if not isinstance(row, dict):
            continue
        label = " ".join(str(row[key]) for key in NAMES if isinstance(row.get(key), str | int) and row[key] != "")
        seen[label] = seen.get(label, 0) + 1
        yield label if seen[label] == 1 else f"{label} #{seen[label]}", row


def banded(node: Mapping[str, Any]) -> Cost | None:
    """Read a timing of several rounds: its ratio to something in the same run, or seconds."""
    if {"ratio", "ratio_low", "ratio_high"} <= node.keys():
        return Cost(node["ratio"], node["ratio_low"], node["ratio_high"], "x")
    if {"seconds", "low", "high", "why"} <= node.keys() and not isinstance(node["seconds"], dict):
        return Cost(node["seconds"], node["low"], node["high"], "s", node["why"])
    return None


def single(key: str, value: Any, node: Mapping[str, Any]) -> Cost | None:
    """Read a field: seconds, bytes or a count, with its quartiles or ratio if they stand beside it; or a verdict."""
    if key in ("verdict", "why", "identical"):
        bad = value not in GOOD if key == "verdict" else bool(value) is (key == "why")
        return Cost(float(bad), float(bad), float(bad), "verdict", str(value))
    if key == "peaks" and value:
        return _spread(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(quartiles := node.get(f"{key}_quartiles"), list):
        low, high = quartiles
        return Cost(value, low, high, "x")
    if key.endswith("seconds") and value > 0:
        return (
            _once(node["ratio"], ONCE, "x") if "ratio" in node and key != "upgrade_seconds" else _once(value, ONCE, "s")
        )
    if key.endswith("_bytes") or key == "peak":
        return None if "peaks" in node else _once(value, SIZES, "B")
    return _once(value, SIZES, "B" if key == "saved" else "") if key in COUNTS else None


def _spread(values: Sequence[float]) -> Cost:
    middle = statistics.median(values)
    return Cost(middle, min(*values, middle * (1 - SIZES)), max(*values, middle * (1 + SIZES)), "B")


def _once(value: float, tolerance: float, unit: str) -> Cost:
    return Cost(value, value * (1 - tolerance), value * (1 + tolerance), unit)


def judged(old: Cost, new: Cost) -> str:
    """Return "worse", "better" or "" for two costs of one name."""
    if new.low > old.high and new.value > old.value * (1 + LEAST):
        return "worse"
    return "better" if new.high < old.low and new.value < old.value * (1 - LEAST) else ""


# -- where results are ------------------------------------------------------------------------------------------------


def load(where: str) -> dict[str, dict[str, Any]]:
    """Return results by the name of their file.

    Raises:
        SystemExit: there is no such file, folder or revision, or it has no results.
    """
    path = Path(where)
    if path.is_dir():
        found = {each.name: each.read_text("utf-8") for each in sorted(path.glob("*.json"))}
    elif path.is_file():
        found = {path.name: path.read_text("utf-8")}
    else:
        found = _at_revision(where)
    if not found:
        sys.exit(f"{where}: no results; give a JSON file, a folder of them, or a git revision")
    try:
        return {name: json.loads(text) for name, text in found.items()}
    except json.JSONDecodeError as error:
        sys.exit(f"{where}: no JSON: {error}")


def _at_revision(revision: str) -> dict[str, str]:
    folder = RESULTS.relative_to(ROOT).as_posix()
    listed = _git("ls-tree", "--name-only", revision, f"{folder}/")
    names = [name for name in listed.splitlines() if name.endswith(".json")]
    return {Path(name).name: _git("show", f"{revision}:{name}") for name in names}


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in what two runs were not alike, as far as it may explain their numbers."""
    told = []
    for key in ("cpu", "device", "cores", "threads", "versions"):
        before, after = (run.get("environment", {}).get(key) for run in (old, new))
        if before != after:
            told.append(f"{key}: {before} and {after}")
    before, after = old.get("arguments", {}), new.get("arguments", {})
    told += [
        f"{key}: {before[key]} and {after[key]}" for key in before.keys() & after.keys() if before[key] != after[key]
    ]
    return sorted(told)


# -- what is printed --------------------------------------------------------------------------------------------------

Line = tuple[str, str, Cost, Cost]  # verdict, name, old, new


def compared(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[Line], list[str]]:
    """Return what both results have, judged; and the names that only the old one has."""
    before, after = (dict(costs(run.get("rows", []))) for run in (old, new))
    lines = [(judged(cost, after[name]), name, cost, after[name]) for name, cost in before.items() if name in after]
    return lines, [name for name in before if name not in after]


def cells(line: Line) -> tuple[str, ...]:
    """Return a row of the table."""
    verdict, name, old, new = line
    if old.unit == "verdict":
        return name, old.text[:60] or "fine", new.text[:60] or "fine", "", "", verdict
    ratio = f"{new.value / old.value:.3f}" if old.value else ""
    band = f"{_said(new.low, new.unit)} .. {_said(new.high, new.unit)}"
    return name, _said(old.value, old.unit), _said(new.value, new.unit), ratio, band, verdict


def _said(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}".strip() if unit in ("B", "") else f"{value:.4g} {unit}"


HEADS = ("", "old", "new", "new / old", "band of new", "")


def main(argv: Sequence[str] | None = None) -> int:
    """Print what changed; return 1 if something regressed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", metavar="OLD", help="a JSON file, a folder, or a git revision")
    parser.add_argument(
        "new", metavar="NEW", nargs="?", default=str(RESULTS), help="likewise; by default bench/results"
    )
    parser.add_argument("--all", action="store_true", help="print what did not change, too")
    args = parser.parse_args(argv)
    old, new = load(args.old), load(args.new)
    if len(old) == len(new) == 1:  # two files, whatever they are called
        new = dict(zip(old, new.values(), strict=True))
    worse = total = 0
    for name in sorted(old.keys() & new.keys()):
        lines, gone = compared(old[name], new[name])
        total, worse = total + len(lines), worse + sum(line[0] == "worse" for line in lines)
        told = [cells(line) for line in lines if args.all or line[0]]
        if told:
            show(name, HEADS, told, 170)
            print("".join(f"{name}: {text}\n" for text in differences(old[name], new[name])), end="")
        if gone:
            print(f"{name}: {len(gone)} quantities are gone, such as {gone[0]}")
    for name in sorted(old.keys() ^ new.keys()):
        print(f"{name}: only in {args.old if name in old else args.new}")
    print(f"{total} quantities in {len(old.keys() & new.keys())} files, {worse} regressed")
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
