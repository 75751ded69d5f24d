"""Compile time: the same Llama under plain torch.compile, mhc and, if asked, other libraries, in fresh processes.

Each case runs twice with one cache directory: the first process finds it empty (cold), the second full (warm).
Contenders take turns, and medians over the rounds count. `whole` compiles the model at once; `blocks` compiles its
identical layers one by one, where the code of the first should serve them all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.common import save, show
from bench.train.contenders import compile_options, entry
from bench.train.setup import Setup
from mhc_compile.cli import measure

SHAPES = {"whole": (4, 512), "blocks": (12, 256)}  # layers, hidden


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every case, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.compile_time", description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--contenders", nargs="*", default=["plain", "mhc"], help="plain first; %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        given = json.loads(args.worker)
        print(json.dumps(work(given["case"], given["name"], Setup(**given["setup"]))))
        return

    runs = []
    for case in args.cases:
        layers, hidden = SHAPES[case]
        setup = Setup(hidden, layers, batch=2, length=args.length, streams=args.streams, device=args.device)
        for name in args.contenders * args.rounds:
            with tempfile.TemporaryDirectory() as folder:
                runs += [process(case, name, folder, setup) | {"caches": caches} for caches in ("cold", "warm")]
    rows = medians(runs)
    plain = {(r["case"], r["caches"]): r["compile_seconds"] for r in rows if r["name"] == "plain"}
    lines = []
    for row in rows:
        row["ratio"] = row["compile_seconds"] / plain[row["case"], row["caches"]]
        lines.append(
            (
                f"{row['case']} {row['caches']} {row['name']}",
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


def medians(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the run of each case that compiled in the median time, with the times of all its rounds."""
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs:
        alike.setdefault((run["case"], run["name"], run["caches"]), []).append(run)
    found = []
    for rounds in alike.values():
        seconds = [run["compile_seconds"] for run in rounds]
        found.append(rounds[seconds.index(statistics.median_low(seconds))] | {"rounds_seconds": seconds})
    return found


def process(case: str, name: str, folder: str, setup: Setup) -> dict[str, Any]:
    """Compile a contender in a process of its own on the cache directory `folder`."""
    given = json.dumps({"case": case, "name": name, "setup": asdict(setup)})
    done = subprocess.run(
        [sys.executable, "-m", "bench.compile_time", "--worker", given],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    print(f"compiled {case} {name}: {measured['compile_seconds']:.1f} s", flush=True)
    return {"case": case, "name": name, **measured}


def work(case: str, name: str, setup: Setup) -> dict[str, Any]:
    """Compile here; seconds of the upgrade and of the first step above a usual one."""
    torch.set_num_threads(setup.threads)
    measure.start_compiler(setup.device)
    one = entry(name, setup)
    model: Any = one.model
    for module in [model] if case == "whole" else model.model.layers:
        module.compile(**compile_options(name, setup))

    torch._dynamo.utils.counters.clear()
    torch._dynamo.utils.compilation_time_metrics.clear()

    def step() -> None:
        model.zero_grad()
        model(**one.keywords).loss.backward()

    seconds = [measure.seconds_of(step) for _ in range(6)]
    return {
        "upgrade_seconds": one.upgrade_seconds,
        "compile_seconds": seconds[0] - statistics.median(seconds[1:]),
        "steps_seconds": seconds,
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        # torch's own account: nested phases, so they do not add up
        "phases_seconds": {k: sum(v) for k, v in torch._dynamo.utils.compilation_time_metrics.items()},
    }
