"""A seam on a CPU, forward and backward, against one copy of its streams: the least that one pass over them takes.

The ratio to the copy says the same on every machine, the times do not. Backwards are the op itself, without autograd.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.common import save, show
from mhc_compile.cli import measure
from mhc_compile.codegen.runtime import cpu
from mhc_compile.ops import reference
from mhc_compile.ops.registration import call
from mhc_compile.ops.signatures import (
    NO_HISTORY,
    MapOptions,
    Options,
    Parameters,
    SavedSite,
    Seam,
    SeamBackward,
    SeamResult,
    SiteInputs,
    SiteUpstream,
    Tail,
    Written,
)

SHAPES = ((256, torch.float32), (512, torch.float32), (1024, torch.float32), (512, torch.bfloat16))
TOKENS, STREAMS, THREADS = 1024, 4, (1, 2)
COPY, FORWARD, BACKWARD = "copy", "forward", "backward"


def main(args: argparse.Namespace) -> None:
    """Measure every shape on one thread and on two, print the table, write the JSON.

    Raises:
        MissingDependencyError: there is no compiler for the kernels.
    """
    rows = [row(TOKENS, c, dtype, threads, args.rounds) for c, dtype in SHAPES for threads in THREADS]
    lines = [
        (
            f"{row['channels']} {row['dtype']}, {row['threads']} threads",
            *(f"{row[name]['median'] * 1e3:.2f} ms" for name in (COPY, FORWARD, BACKWARD)),
            *(f"{row[name]['ratio']:.1f}x" for name in (FORWARD, BACKWARD)),
        )
        for row in rows
    ]
    show(f"a seam, {TOKENS} tokens, n = {STREAMS}", ("", COPY, FORWARD, BACKWARD, "of copy", "of copy"), lines)
    given = {"tokens": TOKENS, "streams": STREAMS, "rounds": args.rounds}
    save("seams", "cpu", given, rows, args.folder)


def row(tokens: int, channels: int, dtype: torch.dtype, threads: int, rounds: int) -> dict[str, Any]:
    """Time one shape on so many threads."""
    cpu.register(STREAMS, [dtype])
    with on_threads(threads):
        timed = measure.interleave(steps(tokens, channels, dtype), rounds=rounds, baseline=COPY)
    shape = {"channels": channels, "dtype": str(dtype).removeprefix("torch."), "threads": threads}
    return {**shape, **{name: dataclasses.asdict(timing) for name, timing in timed.items()}}


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def steps(tokens: int, channels: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Return the copy and the two directions."""
    n, logits = STREAMS, 2 * STREAMS + STREAMS**2
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int, like: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(like)

    x, f = draw(tokens, n, channels, like=dtype), draw(tokens, channels, like=dtype)
    h_res = reference.sinkhorn(draw(tokens, n, n), 20)
    written = Written(f, torch.sigmoid(draw(tokens, n)), h_res, Tail(None, None, 1.0))
    phi = draw(n * channels, logits) / (n * channels) ** 0.5
    parameters = Parameters(phi, torch.ones(3), torch.zeros(logits), draw(logits))
    options = Options(MapOptions(n, "mhc", "sinkhorn", 20, 1e-6, True), "rms", 1e-6, False)
    weight = torch.ones(channels, dtype=dtype)
    forward = Seam(x, written, SiteInputs(parameters, weight, None), options)
    made: SeamResult = call("seam", forward)
    kept = SavedSite(phi, parameters.alpha, parameters.base, weight, None, made.arrival.kept)
    upstream = SiteUpstream(draw(tokens, channels, like=dtype), draw(tokens, n), draw(tokens, n, n))
    backward = SeamBackward(draw(tokens, n, channels, like=dtype), upstream, x, written, kept, options, NO_HISTORY)
    target = torch.empty_like(x)
    return {
        COPY: lambda: target.copy_(x),
        FORWARD: lambda: call("seam", forward),
        BACKWARD: lambda: call("seam_backward", backward),
    }
