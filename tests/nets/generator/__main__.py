"""`python -m tests.nets.generator`: judge networks by number, print what is wrong with its code, and count."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import fnmatch
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

from tests.nets.generator import faults
from tests.nets.generator.families import STRUCTURES
from tests.nets.generator.judge import Fault, judge
from tests.nets.generator.network import Drawing, draw
from tests.nets.generator.uses import USES

SHARE = 25  # networks that a process takes at a time


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments name; return 1 if a network is not what it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.nets.generator", description=__doc__)
    parser.add_argument("--networks", type=int, default=2000, help="how many (2000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first: a network follows from its number")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="structures that lead, such as 'gates/*'")
    parser.add_argument("--use", default="*", metavar="PATTERN", help="what is done with them, such as 'no_grad'")
    parser.add_argument("--kernels", action="store_true", help="by generated kernels, in Triton's interpreter")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--mended", action="store_true", help="leave out what is known to be wrong")
    args = parser.parse_args(argv)
    if args.kernels and os.environ.get("TRITON_INTERPRET") != "1":
        os.environ["TRITON_INTERPRET"] = "1"  # Triton decides at its import
        os.execv(sys.executable, [sys.executable, "-m", "tests.nets.generator", *(argv or sys.argv[1:])])

    numbers = range(args.first, args.first + args.networks)
    shares = [numbers[i : i + SHARE] for i in range(0, len(numbers), SHARE)]
    counts: collections.Counter[str] = collections.Counter()
    failed: list[str] = []
    with concurrent.futures.ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        for share in pool.map(_share, [args] * len(shares), shares):
            for verdict, text in share:
                counts[verdict] += 1
                if text:
                    print(text, flush=True)
                    failed.append(text.splitlines()[0])
            print(f"{sum(counts.values())} networks: {dict(counts)}", flush=True)
    print("\n".join(["", *failed, f"{sum(counts.values())} networks: {dict(counts)}"]))
    return 1 if failed else 0


def drawn(number: int, args: argparse.Namespace) -> Drawing:
    """The network of a number, among those that were asked for."""
    names, uses = list(STRUCTURES), list(USES)
    if args.mended:
        names, uses = faults.without(names, faults.STRUCTURES), faults.without(uses, faults.USES)
    if args.kernels:
        names = [name for name in names if STRUCTURES[name].exact]
    leads = fnmatch.filter(names, args.only)
    return draw(number, names, fnmatch.filter(uses, args.use), leads)


def _share(args: argparse.Namespace, numbers: range) -> list[tuple[str, str]]:
    return list(_verdicts(args, numbers))


def _verdicts(args: argparse.Namespace, numbers: range) -> Iterator[tuple[str, str]]:
    warnings.simplefilter("ignore")
    for number in numbers:
        drawing = drawn(number, args)
        try:
            yield judge(drawing, args.kernels), ""
        except Fault as fault:
            yield "wrong", f"{number} {drawing.structures} {drawing.use}: {fault}\n"
        except Exception:
            yield "broken", f"{number} {drawing.structures} {drawing.use}: the judge fails\n{traceback.format_exc()}"


if __name__ == "__main__":
    sys.exit(main())
