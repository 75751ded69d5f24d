"""Which sites have generated kernels, and how many writes a kernel replays.

These are limits of kernels, and yet they stand with the ops. Passes decide by them what to fuse and what to keep, and
codegen refuses by them what it cannot write; neither side imports the other, so both meet here. No op's meaning depends
on this file.
"""

from __future__ import annotations

import torch

MOST_STREAMS = 16  # whose n^2 mixing weights a kernel holds in registers
DTYPES = {  # of streams, by the type of the device; what is not named has those of CUDA
    "cpu": (torch.bfloat16, torch.float32),
    "cuda": (torch.bfloat16, torch.float16, torch.float32),
}
MOST_WRITES = 8  # that a kernel replays

# an H200
_FMA_PER_SECOND = 67e12 / 2 / 2  # of its fp32 units, half of whose slots a kernel fills
_BYTES_PER_SECOND = 4.3e12  # what copying reaches


def why_not(n: int, connection: str, projection: str, dtype: torch.dtype, device: str = "cuda") -> str | None:
    """Return why no kernel is generated for such a site, in a few words, or None where one is."""
    if connection not in ("mhc", "deepseek-v4"):
        return f"there are kernels for the connections 'mhc' and 'deepseek-v4', not for {connection!r}"
    if projection not in ("sinkhorn", "identity"):
        return f"there are kernels for the projections 'sinkhorn' and 'identity', not for {projection!r}"
    if n > MOST_STREAMS:
        return f"there are kernels for up to {MOST_STREAMS} streams, not for {n}"
    known = DTYPES.get(device, DTYPES["cuda"])
    if dtype not in known:
        return f"there are kernels for {', '.join(map(str, known))}, not for {dtype}"
    return None


def replay_limit(n: int, itemsize: int) -> int:
    """Return the most writes that a kernel replays: so many that arithmetic stays behind its memory traffic.

    Per feature a replayed write takes n^2 + n multiply-adds wherever a backward needs streams: for the coefficients,
    for the streams, and for each group of columns of phi's gradient. All else takes about 70 at n = 4. It reads an
    output once more in each of two launches, which move 4 n + 5 elements per feature without it.
    """
    write, wide = n * n + n, -(-(n * n + 2 * n) // 16) * 16
    groups = -(-n // max(1, 160 // wide))  # as many of phi's columns as registers hold
    spare = (4 * n + 5) * itemsize / _BYTES_PER_SECOND - 3.5 * write / _FMA_PER_SECOND
    each = write * (2 + groups) / _FMA_PER_SECOND - 2 * itemsize / _BYTES_PER_SECOND
    return MOST_WRITES if each <= 0 else min(MOST_WRITES, max(1, int(spare / each)))
