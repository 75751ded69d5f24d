"""The command line of `python -m bench.train`: check every contender, time those that are right, in turns.

On a CPU it measures hidden 256, 512 and 1024 in fp32 and bf16; with `--device cuda` the shapes of large models: 2560
(the paper's 27B), 4096 and 7168 features, bf16, 8192 tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.common import RESULTS, save
from bench.kernels.support.reasons import reason
from bench.train import apart, check, measures, report
from bench.train.contenders import DEFAULT, Entry, entry
from bench.train.peers import PEERS
from bench.train.peers.layer import UnavailableError
from bench.train.setup import CPU, CUDA, DRY, Setup, layers_for
from mhc_compile.cli import bench, measure

Row = dict[str, Any]
GROUPS = {
    "step": (measures.FORWARD_BACKWARD, measures.TRAINING),
    "prefill": (measures.PREFILL,),
    "decode": (measures.DECODE,),
    "compile": (),
    "memory": (),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every size and dtype; print tables, write a JSON for each and one plot."""
    args = arguments(argv)
    measure.require("matplotlib", "rich")
    # A contender has three graphs: of training, of a prompt and of one token, all of fixed sizes. Where torch gives up
    # on one of them it would run uncompiled.
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.recompile_limit = 8 * len(args.contenders)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch.set_num_threads(args.threads)
    for setup in setups(args):
        torch._dynamo.reset()
        rows = run(setup, args.contenders, args.measures)
        report.show(setup.title, rows)
        save(f"train-{setup.hidden}-{setup.dtype}", setup.device, asdict(setup), rows, args.out)
    print(f"wrote {report.plot(args.out, args.device)}")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, nargs="*", help="features C")
    parser.add_argument("--dtypes", nargs="*", choices=CPU.dtypes, help="of the model")
    parser.add_argument("--contenders", nargs="*", default=list(DEFAULT), metavar="NAME",
                        help="plain first; also mhc/reference, hc; default: %(default)s")  # fmt: skip
    parser.add_argument("--measures", nargs="*", default=list(GROUPS), choices=list(GROUPS), help="all by default")
    parser.add_argument("--device", default="cpu")
    for name in ("layers", "batch", "length", "prompt", "streams", "rounds", "threads"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--compiler", choices=("inductor", "aot_eager", "eager"))
    parser.add_argument("--out", type=Path, help="folder of the results; bench/results by default")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU, not compiled, into a temp folder")
    args = parser.parse_args(argv)
    if args.contenders[:1] != [bench.PLAIN]:
        args.contenders = [bench.PLAIN, *(name for name in args.contenders if name != bench.PLAIN)]
    if unknown := {name for name in args.contenders if not known(name)}:
        parser.error(f"no contender {', '.join(sorted(unknown))}; there are {', '.join(DEFAULT)}, mhc/reference, hc")
    args.sizes = CUDA if args.device.startswith("cuda") else CPU
    if args.dry_run:
        args.device = "cpu"
    elif args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU here; --dry-run does without")
    args.threads = args.threads or torch.get_num_threads()
    args.out = args.out or (Path(tempfile.mkdtemp(prefix="mhc-train-")) if args.dry_run else RESULTS)
    return args


def known(name: str) -> bool:
    """Tell whether there is a contender of this name."""
    connection, _, kernels = name.partition("/")
    ours = connection in ("mhc", "hc") and kernels in ("", "auto", "reference", "cpp", "triton")
    return name == bench.PLAIN or name in PEERS or ours


def setups(args: argparse.Namespace) -> Iterator[Setup]:
    """Iterate over what is measured: the smallest first."""
    large = {"batch": 1, "length": 8192, "prompt": 8192} if args.device.startswith("cuda") else {}
    names = ("layers", "batch", "length", "prompt", "streams", "rounds", "threads", "compiler")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    for dtype in args.dtypes or args.sizes.dtypes:
        for hidden in args.hidden or args.sizes.hidden:
            shape: dict[str, Any] = {"layers": layers_for(hidden, args.device)} | large
            if args.dry_run:
                hidden, shape = hidden // 16 // 16 * 16, shape | DRY
            yield Setup(**shape | given | {"hidden": hidden, "dtype": dtype, "device": args.device})


def run(setup: Setup, names: Sequence[str], chosen: Sequence[str]) -> list[Row]:
    """Check all contenders, then time those that are right."""
    print(setup.title, flush=True)
    rows, right = [], {}
    for name in names:
        one, row = checked(name, setup)
        rows.append(row)
        print(f"{name}: {row['why'] or row['eager'] or 'right'}", flush=True)
        if one is not None:
            right[name] = one
    if bench.PLAIN not in right:  # nothing to compare with
        return rows
    timed = tuple(name for group in chosen for name in GROUPS[group])
    with quiet(f"{len(right)} contenders, {setup.rounds} rounds"):
        times = measures.times(right, setup, timed) if timed else {}
    for row in rows:
        row["times"] = {name: asdict(found[row["name"]]) for name, found in times.items() if row["name"] in found}
    compiled = [name for name, one in right.items() if not one.eager]
    right.clear()
    if "compile" in chosen and setup.compiler == "inductor":
        with quiet("compile time"):
            merge(rows, "compile", apart.compile_times(compiled, setup))
    if "memory" in chosen:
        merge(rows, "memory", apart.memory(compiled, setup))
    return rows


@contextmanager
def quiet(what: str) -> Iterator[None]:
    """Say when times are taken, so that whoever shares the machine can be still."""
    print(f"timing: {what}", flush=True)
    start = time.perf_counter()
    yield
    print(f"timed: {what}, in {time.perf_counter() - start:.0f} s", flush=True)


def merge(rows: Sequence[Row], key: str, found: dict[str, Row]) -> None:
    """Put what was found into the rows of its contenders."""
    for row in rows:
        if row["name"] in found:
            row[key] = found[row["name"]]


def checked(name: str, setup: Setup) -> tuple[Entry | None, Row]:
    """Build, compile and check a contender; without it where it is not right."""
    peer = PEERS.get(name)
    row: Row = {"name": name, "library": peer and peer.distribution, "version": peer and peer.version}
    row |= {"why": "", "eager": ""}
    try:
        one = entry(name, setup)
    except UnavailableError as error:
        return None, row | {"why": str(error)}
    found, row["eager"] = tried(one, setup)
    row |= {"why": found.why, "checked": asdict(found)}
    if found.why:
        return None, row
    row |= {"saved_bytes": one.saved(), "parameters": sum(p.numel() for p in one.model.parameters())}
    return one, row | {"upgrade_seconds": one.upgrade_seconds}


def tried(one: Entry, setup: Setup) -> tuple[check.Checked, str]:
    """Check a contender compiled and, where a peer does not compile, eager; return the reason beside."""
    try:
        return check.check(one, setup), ""
    except Exception as error:  # a compiler's or a library's, whatever it is
        failed = reason(error)
    if one.name in PEERS:
        one.compiled, one.eager = one.model, f"eager: {failed}"
        try:
            return check.check(one, setup), one.eager
        except Exception as error:
            failed = reason(error)
    return dataclasses.replace(check.Checked(), why=f"does not run: {failed}"), ""
