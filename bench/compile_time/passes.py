"""The cost of rewriting: the passes' time against Dynamo's own tracing time, by number of layers.

The model is narrow: neither time depends on the width, only on the number of nodes. Tracing is
the time from calling the plain model to the entry of its backend; the passes' time is the runner's
sum over the pipeline.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import fx

import mhc_compile as mhc
from bench.common import save, show, tokens
from mhc_compile.backend import mhc as mhc_backend
from mhc_compile.backend import rewriting
from mhc_compile.cli.language import llama
from mhc_compile.passes import Results
from mhc_compile.passes.runner import run


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every depth, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.compile_time.passes", description=__doc__)
    parser.add_argument("--layers", type=int, nargs="*", default=[12, 24, 48, 96])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--streams", type=int, default=4)
    args = parser.parse_args(argv)
    rows = [depth(layers, args) for layers in args.layers]

    names = list(rows[0]["passes"])
    lines = [
        (
            str(row["layers"]),
            f"{row['tracing_seconds']:.2f} s",
            f"{row['passes_seconds'] * 1e3:.0f} ms",
            f"{row['passes_seconds'] / row['tracing_seconds']:.1%}",
            f"{row['passes_seconds'] * 1e3 / row['layers']:.2f} ms",
            *(f"{row['passes'][name] * 1e3:.0f}" for name in names),
        )
        for row in rows
    ]
    heads = ("layers", "tracing", "passes", "share", "per layer", *(f"{n}, ms" for n in names))
    show(f"passes against tracing; {growth(rows)}", heads, lines)
    save("rewrite_cost", "cpu", vars(args), rows)


def depth(layers: int, args: argparse.Namespace) -> dict[str, Any]:
    """Medians over the repeats at one depth, in seconds."""
    model = llama(64, layers, 16)
    inputs = tokens(1, 16)
    upgraded = copy.deepcopy(model)
    config = mhc.Config(streams=args.streams, compiler="eager")
    mhc.upgrade(upgraded, (), inputs, config=config, verify=False)
    tracing, passes = [], []
    for _ in range(args.repeats):
        tracing.append(tracing_seconds(model, inputs))
        passes.append(passes_seconds(upgraded, inputs, args.streams))
    middle = {name: statistics.median(p[name] for p in passes) for name in passes[0]}
    return {
        "layers": layers,
        "tracing_seconds": statistics.median(tracing),
        "passes_seconds": sum(middle.values()),
        "passes": middle,
    }


def tracing_seconds(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    """Seconds from the call of the plain model to the entry of its backend."""
    entered: list[float] = []

    def backend(gm: fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        entered.append(time.perf_counter())
        return gm.forward

    torch._dynamo.reset()
    start = time.perf_counter()
    torch.compile(model, backend=backend)(**inputs)
    return entered[0] - start


def passes_seconds(model: torch.nn.Module, inputs: dict[str, torch.Tensor], streams: int) -> dict[str, float]:
    """Seconds of each pass on the upgraded model's graph."""
    torch._dynamo.reset()
    options: dict[str, Any] = {"streams": streams, "compiler": "eager"}
    runs: list[Results] = []

    def recorded(*args: Any) -> Results:
        runs.append(run(*args))
        return runs[-1]

    with mock.patch.object(rewriting, "run", recorded):
        torch.compile(model, backend=mhc_backend, options=options)(**inputs)
    return {each.name: each.seconds for each in runs[-1].times}


def growth(rows: list[dict[str, Any]]) -> str:
    """The exponent of the growth from the first depth to the last; 1 is linear."""
    first, last = rows[0], rows[-1]
    if first["layers"] == last["layers"]:
        return "one depth"
    deeper = math.log(last["layers"] / first["layers"])
    exponent = math.log(last["passes_seconds"] / first["passes_seconds"]) / deeper
    return f"they grow like layers^{exponent:.2f}"


if __name__ == "__main__":
    main()
