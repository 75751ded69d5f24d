"""`python -m bench.zoo [NAME ...]`: run families, print a line for each, update the results and the table."""

from __future__ import annotations

import argparse
import fnmatch
import signal
import sys
from collections.abc import Sequence

from bench.zoo import runner, table
from bench.zoo.check import Row
from bench.zoo.family import Family
from bench.zoo.registry import FAMILIES


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments name; return 1 if a family fails."""
    parser = argparse.ArgumentParser(prog="python -m bench.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="names or patterns, such as llama or 'timm/*'")
    parser.add_argument("--quick", action="store_true", help="only the subset that runs in CI")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds that a family may take")
    parser.add_argument("--dry", action="store_true", help="leave the results and the table as they are")
    args = parser.parse_args(argv)
    families = chosen(args.names, args.quick)
    if not families:
        parser.error("no family matches; bench/ZOO.md lists them, as do the modules of bench.zoo.registry")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the finally below
    rows: list[Row] = []
    try:
        for number, row in enumerate(runner.rows(families, args.jobs, args.limit), start=1):
            rows.append(row)
            print(f"[{number}/{len(families)}] {table.line(row)}", flush=True)
    finally:  # what is known is kept, whatever ends the run
        if not args.dry:
            table.save(rows, vars(args))
    failed = [row for row in rows if row.verdict != "pass"]
    print(f"{len(rows) - len(failed)} of {len(rows)} pass")
    return 1 if failed else 0


def chosen(names: Sequence[str], quick: bool) -> list[Family]:
    """Return the families that a name or pattern fits, by name or by library/name; all without names."""

    def fits(family: Family) -> bool:
        return any(fnmatch.fnmatchcase(text, name) for name in names for text in (family.name, family.key))

    return [f for f in FAMILIES if (not names or fits(f)) and (f.quick or not quick)]


if __name__ == "__main__":
    sys.exit(main())
