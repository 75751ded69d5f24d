"""The command line of `python -m bench.kernels`: steps one after the other, saved as they come.

With `--device cpu` a seam in C++ is timed against one copy of its streams, and nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.common import RESULTS, place, save
from bench.kernels import budgets, cpu, report, tune
from bench.kernels.correctness import checks
from bench.kernels.peers import CONTENDERS, TRIED, probe
from bench.kernels.support import work
from bench.kernels.support.cases import DRY, REAL
from bench.kernels.support.context import Context
from bench.kernels.support.deadline import Deadline
from bench.kernels.timing import ops, race
from bench.kernels.timing.clocks import clock, copy_ceiling
from bench.kernels.timing.sites import Shape
from mhc_compile.cli import measure
from mhc_compile.codegen import Spec

CPU = "cpu"
LIBRARIES = ("liger-kernel", "tile-kernels", "tilelang", "megatron-core", "hyper-connections")


def peers(context: Context) -> list[dict[str, Any]]:
    """Race all contenders on every shape, without a norm: not every library takes one in."""
    shapes = [Shape(context.sizes.tokens, n, c) for n, c in context.sizes.shapes()]
    ahead = context.part(3)
    problems = work.compile_ahead([(Spec("seam", shape.n, shape.channels), None) for shape in shapes], ahead)
    failing = {} if context.dry else probe.failing(list(TRIED), shapes, context.device, context.part(2).deadline.left)
    rows = []
    for shape, problem in zip(shapes, problems, strict=True):
        if not context.deadline.over:
            out = {name: reasons[shape] for name, reasons in failing.items() if shape in reasons}
            rows += race.run(shape, CONTENDERS, context, out | ({"mhc_compile": problem} if problem else {}))
            ops.free(context)
    return rows


STEPS: dict[str, Callable[[Context], Any]] = {
    "correctness": checks.run,
    "time": ops.run,
    "peers": peers,
    "tune": tune.run,
}


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    parser.add_argument("--steps", default=",".join(STEPS), help="comma-separated: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on Triton's interpreter, into a temp folder")
    parser.add_argument("--budgets", action="store_true", help="print bytes by design and stop")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds for all steps together")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=6, help="processes that check or compile side by side")
    parser.add_argument("--space", default="", help="module:function that yields tiles for a spec")
    parser.add_argument("--folder", type=Path, help="where results go; bench/results by default")
    args = parser.parse_args(argv)
    args.steps = args.steps.split(",")
    if unknown := set(args.steps) - set(STEPS):
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    if args.dry_run:
        args.device, args.jobs, args.rounds = CPU, 1, min(args.rounds, 2)
    elif not args.budgets and args.device != CPU and not torch.cuda.is_available():
        parser.error("there is no GPU here; --dry-run does without, and --device cpu times the kernels in C++")
    args.folder = args.folder or (Path(tempfile.mkdtemp(prefix="mhc-kernels-")) if args.dry_run else RESULTS)
    return args


def main(argv: Sequence[str]) -> None:
    """Run the steps, saving after each; print the tables last."""
    args = parsed(argv)
    if args.device == CPU and not args.dry_run and not args.budgets:
        cpu.main(args)
        return
    budgets.show(report.show)
    if args.budgets:
        return
    ticks = clock(args.device)
    ceiling = copy_ceiling(args.device, ticks)
    whole = Deadline(args.limit)
    results = earlier(args)
    for number, name in enumerate(args.steps):
        context = Context(
            args.device, DRY if args.dry_run else REAL, ticks, ceiling, args.rounds, args.jobs,
            whole.share(len(args.steps) - number), args.dry_run, args.space,
        )  # fmt: skip
        print(f"{name}: {context.deadline.left:.0f} s", flush=True)
        rows = STEPS[name](context)
        results[name] = {"environment": environment(args.device), "ceiling": ceiling, "rows": rows}
        saved(args, results)
    finish(args, results)


def environment(device: str) -> dict[str, Any]:
    """Return versions and hardware, other libraries' and the driver's among them."""
    found = dict(measure.environment(device))
    found["peers"] = {name: version(name) for name in LIBRARIES}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = {
            "cuda": torch.version.cuda,
            "driver": os.environ.get("MHC_DRIVER"),
            "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "l2": properties.L2_cache_size,
        }
    return found


def version(distribution: str) -> str | None:
    """Return the version that is installed, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def earlier(args: argparse.Namespace) -> dict[str, Any]:
    """Return the steps that an earlier call on the same device left."""
    path = place("kernels", args.device, args.folder)
    return dict(json.loads(path.read_text("utf-8"))["rows"]) if path.exists() else {}


def saved(args: argparse.Namespace, results: dict[str, Any]) -> Path:
    """Write what there is so far."""
    path = save("kernels", args.device, vars(args), results, args.folder)
    report.hand_out(path)
    return path


def finish(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Draw, note and print."""
    ran = {name: results[name] for name in args.steps}
    path = place("kernels", args.device, args.folder)
    picture = report.plot(results, path.with_suffix(".png"))
    notes = report.note(args.folder, args.device, report.summary(ran))
    report.hand_out(picture, notes)
    report.tables(ran)
    print(f"wrote {path}, {picture} and {notes}")
