"""`python -m tests.nets.generator`: judge networks by number, print what is wrong with its code, and count."""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Sequence

from tests.nets.generator import runner


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments name; return 1 if a network is not what it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.nets.generator", description=__doc__)
    parser.add_argument("--networks", type=int, default=2000, help="how many (2000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first: a network follows from its number")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="structures that lead, such as 'gates/*'")
    parser.add_argument("--use", default="*", metavar="PATTERN", help="what is done with them, such as 'no_grad'")
    parser.add_argument(
        "--kernels", choices=("triton", "cpp"), default="", help="by kernels, in fp32; Triton's in its interpreter"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    args = parser.parse_args(argv)

    choice = runner.Choice(args.only, args.use, args.kernels)
    counts: collections.Counter[str] = collections.Counter()
    failed: list[str] = []
    for share in runner.verdicts(choice, range(args.first, args.first + args.networks), args.jobs):
        counts.update(verdict for verdict, _ in share)
        for text in filter(None, (text for _, text in share)):
            print(text, flush=True)
            failed.append(text.splitlines()[0])
        print(f"{sum(counts.values())} networks: {dict(counts)}", flush=True)
    print("\n".join(["", *failed, f"{sum(counts.values())} networks: {dict(counts)}"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
