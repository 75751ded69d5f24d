"""The command `explain`: what mhc sees in a user's model."""

from __future__ import annotations

import argparse
import json

import mhc_compile as mhc
from mhc_compile.cli import factory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    factory.add_model_arguments(parser)
    parser.add_argument("--training", action="store_true", help="tell what a training step keeps of the streams")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def main(args: argparse.Namespace) -> None:
    """Print the report on the user's model."""
    config = mhc.Config.from_options(factory.parse_options(args.options))
    report = mhc.explain(*factory.load(args.factory, device="meta"), config=config, training=args.training)
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        report.print()
