"""`python -m bench.zoo [NAME ...]`: run families, print a line for each, update the results and the table.

The whole zoo, in every mode, all rows of one revision: `make zoo`, or `python -m bench.zoo --jobs 2 --resume` until it
ends. Results are written as they come: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import signal
import sys
from collections.abc import Sequence

from bench.zoo import runner, table
from bench.zoo.check import Row
from bench.zoo.family import Family
from bench.zoo.modes import MODES
from bench.zoo.registry import FAMILIES


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments name; return 1 if a family fails."""
    parser = argparse.ArgumentParser(prog="python -m bench.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="names or patterns, such as llama or 'timm/*'")
    parser.add_argument(
        "--mode", type=_modes, default=list(MODES), metavar="MODE,...", help=f"of {', '.join(MODES)} (all of them)"
    )
    parser.add_argument("--resume", action="store_true", help="only what this revision has no row of yet")
    parser.add_argument("--quick", action="store_true", help="only the subset that runs in CI")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds that a family may take")
    parser.add_argument("--dry", action="store_true", help="leave the results and the table as they are")
    args = parser.parse_args(argv)
    families = in_modes(chosen(args.names, args.quick), args.mode)
    if not families:
        parser.error("no family matches; bench/results/ZOO.md lists them, as do the modules of bench.zoo.registry")
    results = table.Results(vars(args))
    if args.resume:
        families = [family for family in families if not results.has(family)]

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the finally below
    rows: list[Row] = []
    try:
        for number, row in enumerate(runner.rows(families, args.jobs, args.limit), start=1):
            rows.append(row)
            if not args.dry:
                results.add(row)
            print(f"[{number}/{len(families)}] {table.line(row)}", flush=True)
    finally:  # what is known is kept, whatever ends the run
        if not args.dry:
            results.write_table()
    judged = [row for row in rows if row.verdict != "none"]
    failed = [row for row in judged if row.verdict != "pass"]
    print(f"{len(judged) - len(failed)} of {len(judged)} pass")
    return 1 if failed else 0


def chosen(names: Sequence[str], quick: bool) -> list[Family]:
    """Return the families that a name or pattern fits, by name or by library/name; all without names."""

    def fits(family: Family) -> bool:
        return any(fnmatch.fnmatchcase(text, name) for name in names for text in (family.name, family.key))

    return [f for f in FAMILIES if (not names or fits(f)) and (f.quick or not quick)]


def in_modes(families: Sequence[Family], modes: Sequence[str]) -> list[Family]:
    """Return the families in each of the modes, mode by mode."""
    return [dataclasses.replace(family, mode=mode) for mode in modes for family in families]


def _modes(text: str) -> list[str]:
    modes = text.split(",")
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise argparse.ArgumentTypeError(f"no mode {', '.join(unknown)}; there are {', '.join(MODES)}")
    return modes


if __name__ == "__main__":
    sys.exit(main())
