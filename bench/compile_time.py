"""Compile time: the same Llama under plain torch.compile and mhc, in fresh processes.

Each case runs twice with one cache directory: the first process finds it empty (cold), the second
full (warm). `whole` compiles the model at once; `blocks` compiles its identical layers one by one,
where the code of the first should serve them all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mhc_compile as mhc
from bench.common import llama, save, show, tokens
from mhc_compile.backend import mhc as mhc_backend
from mhc_compile.cli import measure

SHAPES = {"whole": (4, 512), "blocks": (12, 256)}  # layers, hidden
BACKENDS = ("plain", "mhc")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every case, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.compile_time", description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "BACKEND"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        case, backend = args.worker
        print(json.dumps(work(case, backend, args)))
        return

    rows = []
    for case in args.cases:
        for backend in BACKENDS:
            with tempfile.TemporaryDirectory() as folder:
                rows += [process(case, backend, caches, folder, args) for caches in ("cold", "warm")]
    plain = {(r["case"], r["caches"]): r["compile_seconds"] for r in rows if r["backend"] == "plain"}
    lines = []
    for row in rows:
        row["ratio"] = row["compile_seconds"] / plain[row["case"], row["caches"]]
        lines.append(
            (
                f"{row['case']} {row['caches']} {row['backend']}",
                f"{row['compile_seconds']:.1f} s",
                f"{row['ratio']:.2f}x",
                f"{row['upgrade_seconds']:.1f} s",
                str(row["graphs"]),
            )
        )
    title = "compiling forward and backward " + ", ".join(
        f"{case}: {layers} layers of {hidden}" for case, (layers, hidden) in SHAPES.items()
    )
    show(title, ("", "compile", "ratio", "upgrade", "graphs"), lines)
    arguments = {k: v for k, v in vars(args).items() if k != "worker"}
    save("compile_time", args.device, arguments, rows)


def process(case: str, backend: str, caches: str, folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one case in a process of its own on the cache directory `folder`."""
    options = [f"--{name}={getattr(args, name)}" for name in ("streams", "length", "device")]
    done = subprocess.run(
        [sys.executable, "-m", "bench.compile_time", "--worker", case, backend, *options],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    print(f"{case} {backend} {caches}: {measured['compile_seconds']:.1f} s")
    return {"case": case, "backend": backend, "caches": caches, **measured}


def work(case: str, backend: str, args: argparse.Namespace) -> dict[str, Any]:
    """Compile here; seconds of the upgrade and of the first step above a usual one."""
    layers, hidden = SHAPES[case]
    model = llama(hidden, layers, args.length).to(args.device)
    inputs = tokens(2, args.length, args.device)
    measure.start_compiler(args.device)
    options: dict[str, Any] = {}
    upgrading = 0.0
    if backend == "mhc":
        start = time.perf_counter()
        mhc.upgrade(model, (), inputs, config=mhc.Config(streams=args.streams), verify=False)
        upgrading = time.perf_counter() - start
        options = {"backend": mhc_backend, "options": {"streams": args.streams}}
    for module in [model] if case == "whole" else model.get_submodule("model.layers").children():
        module.compile(**options)

    torch._dynamo.utils.counters.clear()
    torch._dynamo.utils.compilation_time_metrics.clear()

    def step() -> None:
        model.zero_grad()
        model(**inputs).loss.backward()

    seconds = [measure.seconds_of(step) for _ in range(6)]
    return {
        "upgrade_seconds": upgrading,
        "compile_seconds": seconds[0] - statistics.median(seconds[1:]),
        "steps_seconds": seconds,
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        # torch's own account: nested phases, so they do not add up
        "phases_seconds": {k: sum(v) for k, v in torch._dynamo.utils.compilation_time_metrics.items()},
    }


if __name__ == "__main__":
    main()
