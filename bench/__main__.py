"""`python -m bench [NAME ...]`: run the named benchmarks, or all, with their defaults."""

from __future__ import annotations

import argparse

from bench.compile_time import passes as rewrite_cost
from bench.compile_time import run as compile_time
from bench.memory import run as memory
from bench.train import run as train

BENCHMARKS = {"rewrite_cost": rewrite_cost, "train": train, "compile_time": compile_time, "memory": memory}

parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
chosen = parser.parse_args().names or list(BENCHMARKS)
if unknown := set(chosen) - set(BENCHMARKS):
    parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
for name in chosen:
    BENCHMARKS[name].main([])
