"""generate(spec) -> the text of one file: helpers, kernels and the functions that launch them."""

from __future__ import annotations

import functools
import pprint

from mhc_compile.codegen.spec import DTYPES, Spec, power
from mhc_compile.codegen.text import fill, wrap
from mhc_compile.codegen.triton import (
    forward,
    fragments,
    grad_logits,
    grad_streams,
    grad_sums,
    host,
    leave,
    one_launch,
    replay,
    sinkhorn,
)

_FILE = '''"""$title

$since
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
    fore = "forward" in spec.directions
    if spec.op == "replay":
        body = [replay.forward(spec), host.forward(spec)]
    elif spec.op == "leave":
        body = [leave.forward(spec) if fore else "", leave.backward(spec), *_calls(spec)]
    else:
        body = [
            fragments.products(spec),
            sinkhorn.forward(spec),
            *([forward.GATED, forward.project(spec), forward.read(spec)] if fore else []),
            sinkhorn.backward(spec),
            grad_logits.coefs(spec),
            grad_streams.streams(spec),
            grad_sums.reduce(spec),
            *(
                [one_launch.COUNTERS, one_launch.both(spec) if fore else "", one_launch.back(spec)]
                if spec.reads
                else []
            ),
            *_calls(spec),
        ]
    tables = {"spec": spec.table(), "tiles": default_tiles(spec)}
    head = fill(
        _FILE,
        title=title(spec),
        since=since(spec),
        budget=budget(spec),
        channels=spec.channels,
        **{name: pprint.pformat(table, sort_dicts=False, width=112, indent=1) for name, table in tables.items()},
    )
    return wrap("\n\n".join([head, *(f"{part.strip()}\n" for part in body if part)]))


def _calls(spec: Spec) -> list[str]:
    """Write the functions that launch the kernels."""
    return [{"forward": host.forward, "backward": host.backward}[way](spec) for way in spec.directions]


def title(spec: Spec) -> str:
    """Say in a line what the file computes."""
    what = {
        "enter": "enter: coefficients and read",
        "seam": "seam: write, coefficients and read",
        "leave": "leave: write and readout",
        "coefficients": "coefficients",
        "replay": "replay",
    }[spec.op]
    streams = "equal streams" if spec.equal_streams else "streams"
    norm = {"none": "", "layer": ", LayerNorm taken in"}.get(spec.norm, ", RMSNorm taken in")
    ways = " and ".join(spec.directions)
    return f"{what}, {ways}, for {spec.n} {streams} of {spec.channels} features in {spec.dtype}{norm}."


def since(spec: Spec) -> str:
    """Say what is replayed, if anything is."""
    if not spec.history:
        return ""
    head = (
        f"one tensor, which all {spec.n} streams are copies of" if spec.equal_head else "the streams at a block's head"
    )
    writes = "1 write is" if len(spec.history) == 1 else f"{len(spec.history)} writes are"
    return f"x is {head}; {writes} replayed from there, rounded as the forward rounded them."


def budget(spec: Spec) -> str:
    """Say how many bytes a token moves, at least and as the kernels stand."""
    least, most = bytes_per_token(spec)
    if len(spec.directions) == 2:
        return (
            f"{least[0]} forward, {least[1]} backward; {most[0]} and {most[1]} where no second read hits the L2 cache"
        )
    at = spec.directions == ("backward",)
    again = f"; {most[at]} where no second read hits the L2 cache" if most[at] > least[at] else ""
    return f"{least[at]} {spec.directions[0]}{again}"


def bytes_per_token(spec: Spec) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (forward, backward) bytes of streams per token, with second reads from L2 and without.

    The forward's are 0 where only the backward replays, and the other way round.
    """
    size, n, k = DTYPES[spec.dtype], spec.n, fragments.distinct(spec)
    f = DTYPES[spec.branch] * spec.mixes / size
    head = spec.heads + sum(DTYPES[step.branch] for step in spec.history) / size  # with what is replayed on it
    new, u = (n if spec.mixes else 0), (1 if spec.reads else 0)
    if spec.op == "replay":
        return _bytes(spec, head + n, 0), _bytes(spec, head + n, 0)
    if spec.op == "leave":
        least = most = (k + f + 1, head + k + 2 * f + 1)
    else:
        again = (new or k) if spec.reads else 0
        least = (k + f + new + u, new + u + head + k + 2 * f)
        most = (least[0] + again, least[1] + (head + f + u if spec.reads else 0))
    return _bytes(spec, *least), _bytes(spec, *most)


def _bytes(spec: Spec, forward: float, backward: float) -> tuple[int, int]:
    """Turn counts of streams into bytes, 0 for a direction that the file does not have."""
    one = spec.channels * DTYPES[spec.dtype]
    there = [way in spec.directions for way in ("forward", "backward")]
    return round(forward * one) * there[0], round(backward * one) * there[1]


def default_tiles(spec: Spec) -> dict[str, dict[str, int]]:
    """Return the launch configuration of every kernel where nothing was tuned."""
    n, c = spec.n, spec.channels
    rowwise = {"BT": 4, "BC": min(power(c), 256 if spec.history else 512), "num_warps": 4}
    if spec.op == "replay":
        return {"replay": rowwise}
    if spec.op == "leave":
        kernels = {"forward": "leave", "backward": "leave_backward"}
        return {kernels[way]: dict(rowwise) for way in spec.directions}
    chunk = max(16, min(power(c), 32 if n <= 4 else 16))
    rows = power(c) if spec.norm != "none" else min(power(c), 1024)
    piece = max(16, min(power(c), 64 if n <= 4 else 32))
    many, stages = (4 if n <= 4 else 8), (2 if n <= 4 else 1)
    deep = {"num_warps": 4, "num_stages": 3} if fragments.roomy(spec) else {"num_warps": 8, "num_stages": stages}
    forward = {
        "project": {"BT": 64, "BC": chunk, "SPLITS": min(8, -(-c // chunk)), **deep},
        "read": {
            "BT": max(1, min(4, 8192 // rows)),
            "BC": rows,
            "BM": spec.matrices,
            "num_warps": 8 if rows > 1024 else 4,
        },
    }
    backward = {
        "coefs": {"BT": 4, "BC": min(power(c), 256), "BM": spec.matrices, "num_warps": 4},
        "streams": {
            "BT": 16,
            "BC": piece,
            "BP": grad_streams.phi_tokens(spec),
            "SPLITS": 16 if n <= 4 else 8,
            "num_warps": many,
            "num_stages": 1,
        },
        "reduce": {"BR": 8, "BC": 1024, "num_warps": 8},
    }
    return backward if spec.history else forward | backward
