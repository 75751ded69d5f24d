"""A training step: the same Llama under plain torch.compile and under mhc, with kernels and without (and hc).

Forward and backward is the ratio to quote: an optimizer costs the same on both sides and only
dilutes it. The step with AdamW stands beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

import mhc_compile as mhc
from bench.common import llama, save, show, tokens
from mhc_compile.cli import bench, measure


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.step", description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--connections", nargs="*", default=["mhc", "mhc/reference"], help="mhc, mhc/reference, hc")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the model; mHC parameters stay in float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    model = llama(args.hidden, args.layers, args.length).to(args.device, getattr(torch, args.dtype))
    inputs = tokens(args.batch, args.length, args.device)
    torch._dynamo.reset()
    contenders = [contender(name, model, inputs, args.streams) for name in (bench.PLAIN, *args.connections)]
    rows = bench.measured(contenders, args.rounds)
    steps = {one.name: training_step(one) for one in contenders}
    trained = measure.interleave(steps, rounds=args.rounds)

    heads = ("", "fwd + bwd", "ratio", "quartiles", "best", "with AdamW", "ratio", "saved")
    lines = []
    for row, full in zip(rows, trained.values(), strict=True):
        low, high = row.step_ratio_quartiles
        lines.append(
            (
                row.name,
                f"{row.step_seconds * 1e3:.1f} ms",
                f"{row.step_ratio:.3f}x",
                f"{low:.3f}-{high:.3f}",
                f"{row.step_ratio_best:.3f}x",
                f"{full.median * 1e3:.1f} ms",
                f"{full.ratio:.3f}x",
                f"{row.saved_bytes / 1e6:.1f} MB",
            )
        )
    shape = f"Llama {args.hidden} x {args.layers}, {args.batch} x {args.length} tokens"
    show(f"{shape}, n={args.streams}, {args.dtype}", heads, lines)
    results = [asdict(row) | {"training": asdict(trained[row.name])} for row in rows]
    save(f"step-{args.hidden}-{args.dtype}", args.device, vars(args), results)


def contender(name: str, model: torch.nn.Module, inputs: dict[str, Any], streams: int) -> bench.Contender:
    """Prepare "plain", or a connection, perhaps with what `Config.kernels` says behind a slash."""
    connection, _, kernels = name.partition("/")
    options = {"streams": streams, "kernels": kernels or "auto"}
    return dataclasses.replace(bench.contender(connection, model, (), inputs, options), name=name)


def training_step(one: bench.Contender) -> Callable[[], None]:
    """Forward, backward and AdamW."""
    parameters = list(one.model.parameters())
    groups = parameters if one.name == bench.PLAIN else mhc.param_groups(one.model, 1e-4, 0.1)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.1, fused=True)

    def step() -> None:
        one.step()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
