"""The command `report`: runs that `mhc_compile.Monitor` has written, as one page that needs nothing else.

`runs`: what the logs say; `charts`: plots as Vega-Lite specifications; `tables`: the rest, in HTML; `page`: all of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mhc_compile.cli import measure
from mhc_compile.cli.report import page, runs

NEEDS = ("vl_convert",)
PACKAGES = {"vl_convert": "vl-convert-python"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that mhc_compile.Monitor wrote to")
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")


def main(args: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        RunLogError: a folder holds no log that can be read.
        MissingDependencyError: the plotting library is not installed.
    """
    measure.require(*NEEDS, packages=PACKAGES)
    found = runs.load(args.runs)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page.made(found), "utf-8")
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB): {', '.join(run.name for run in found)}")
