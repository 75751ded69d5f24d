"""generate(spec) -> the text of one file: helpers, kernels and the functions that launch them."""

from __future__ import annotations

import dataclasses
import functools
import pprint

from mhc_compile.codegen import backward, forward, host, leave, parts, single, sinkhorn, streams, sums
from mhc_compile.codegen.spec import DTYPES, Spec, power
from mhc_compile.codegen.text import fill, wrap

_FILE = '''"""$title

Bytes per token: $budget.
Made by mhc_compile.codegen; runs alone with torch and triton. Edits are overwritten.
"""

import torch
import triton
import triton.language as tl

SPEC = $spec
TILES = $tiles
C = tl.constexpr($channels)
'''


@functools.cache
def generate(spec: Spec) -> str:
    """Return the source of the file for a spec."""
    if spec.op == "leave":
        body = [leave.forward(spec), leave.backward(spec), host.forward(spec)]
    else:
        body = [
            parts.products(spec),
            sinkhorn.forward(spec),
            forward.GATED,
            forward.project(spec),
            forward.read(spec),
            sinkhorn.backward(spec),
            backward.coefs(spec),
            streams.streams(spec),
            sums.reduce(spec),
            *([single.counters(spec), single.both(spec), single.back(spec)] if spec.reads else []),
            host.forward(spec),
            host.backward(spec),
        ]
    tables = {"spec": dataclasses.asdict(spec), "tiles": default_tiles(spec)}
    head = fill(
        _FILE,
        title=title(spec),
        budget=budget(spec),
        channels=spec.channels,
        **{name: pprint.pformat(table, sort_dicts=False, width=112, indent=1) for name, table in tables.items()},
    )
    return wrap("\n\n".join([head, *(f"{part.strip()}\n" for part in body if part)]))


def title(spec: Spec) -> str:
    """Say in a line what the file computes."""
    what = {
        "enter": "enter: coefficients and read",
        "seam": "seam: write, coefficients and read",
        "leave": "leave: write and readout",
        "coefficients": "coefficients",
    }[spec.op]
    streams = "equal streams" if spec.plain else "streams"
    norm = {"none": "", "layer": ", LayerNorm taken in"}.get(spec.norm, ", RMSNorm taken in")
    return f"{what}, forward and backward, for {spec.n} {streams} of {spec.channels} features in {spec.dtype}{norm}."


def budget(spec: Spec) -> str:
    """Say how many bytes a token moves, at least and as the kernels stand."""
    least, most = bytes_per_token(spec)
    return f"{least[0]} forward, {least[1]} backward; {most[0]} and {most[1]} where no second read hits the L2 cache"


def bytes_per_token(spec: Spec) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (forward, backward) bytes of streams per token, with second reads from L2 and without."""
    size, n, k = DTYPES[spec.dtype], spec.n, parts.distinct(spec)
    f = DTYPES[spec.branch] * spec.mixes / size
    new, u = (n if spec.mixes else 0), (1 if spec.reads else 0)
    if spec.op == "leave":
        least = (k + f + 1, 2 * k + 2 * f + 1)
        most = least
    else:
        again = (new or k) if spec.reads else 0
        least = (k + f + new + u, new + u + 2 * k + 2 * f)
        most = (least[0] + again, least[1] + (k + f + u if spec.reads else 0))
    return tuple(tuple(round(v * spec.channels * size) for v in row) for row in (least, most))  # type: ignore[return-value]  # pairs


def default_tiles(spec: Spec) -> dict[str, dict[str, int]]:
    """Return the launch configuration of every kernel where nothing was tuned."""
    n, c = spec.n, spec.channels
    if spec.op == "leave":
        wide = min(power(c), 512)
        return {
            "leave": {"BT": 4, "BC": wide, "num_warps": 4},
            "leave_backward": {"BT": 4, "BC": wide, "num_warps": 4},
        }
    chunk = max(16, min(power(c), 32 if n <= 4 else 16))
    rows = power(c) if spec.norm != "none" else min(power(c), 1024)
    piece = max(16, min(power(c), 64 if n <= 4 else 32))
    many, stages = (4 if n <= 4 else 8), (2 if n <= 4 else 1)
    return {
        "project": {"BT": 64, "BC": chunk, "SPLITS": min(8, -(-c // chunk)), "num_warps": 8, "num_stages": stages},
        "read": {
            "BT": max(1, min(4, 8192 // rows)),
            "BC": rows,
            "BM": spec.matrices,
            "num_warps": 8 if rows > 1024 else 4,
        },
        "coefs": {"BT": 4, "BC": min(power(c), 256), "BM": spec.matrices, "num_warps": 4},
        "streams": {"BT": 16, "BC": piece, "BP": 32 if n <= 4 else 16, "SPLITS": 8, "num_warps": many, "num_stages": 1},
        "reduce": {"BR": 8, "BC": 1024, "num_warps": 8},
    }
