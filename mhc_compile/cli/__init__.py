"""The command line: `mhc-compile explain | bench | demo | report`, or `python -m mhc_compile` with the same.

`explain`, `bench`, `demo`, `report`: the commands, each with its arguments and its `main`.
`factory`: the user's model and options, as the command line names them; `from_config`: a model by its config alone.
`measure`: times, bytes and the environment, for bench and demo; `language`, `training`: what the demo trains, and how.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import mhc_compile as mhc
from mhc_compile.cli import bench, demo, explain, factory, report
from mhc_compile.errors import MHCError

OK, USER_ERROR = 0, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if it worked, or 2 after one line on stderr about a mistake that the user can mend.

    Whoever stops reading, as `head` does, has made none.
    """
    args = parser().parse_args(factory.one_by_one(sys.argv[1:] if argv is None else argv))
    try:
        args.command(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more when it ends
    except MHCError as error:
        print(f"mhc_compile: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    return OK


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = argparse.ArgumentParser(prog="mhc-compile", description="Look at, measure and show mHC.")
    top.add_argument("--version", action="version", version=f"mhc_compile {mhc.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for module, name, text in (
        (explain, "explain", "what mhc sees in a model; changes nothing"),
        (bench, "bench", "a model's step plain, with mhc and with hc"),
        (demo, "demo", "train a small Llama as residual, hc and mhc"),
        (report, "report", "runs that Monitor has written, as one page of HTML"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(command=module.main)
        module.add_arguments(command)
    return top
