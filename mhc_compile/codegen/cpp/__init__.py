"""Kernels in C++ for the CPU: templates over the number of streams and the dtype.

Fields of a Spec that a GPU must know while it compiles are arguments here: a CPU predicts a branch per vector, and
whoever trains waits for one compilation of seconds, not for one per site. So all sites of a model share one file.

call.h      what ops hand to kernels: plain pointers, so that kernels need nothing of torch's
vectors.h   eight or sixteen floats at a time, in the vector extensions of GCC and Clang
maps.h      logits to H_pre, H_post and H_res and back, a lane per token
products.h  the three products with phi, tile by tile in registers, and memory fetched ahead meanwhile
rows.h      a token's streams: what writes make of them, what a branch reads, and its norm
forward.h, backward.h, sums.h, kernels.cpp      blocks of tokens; sums over tokens; the kernels
arguments.h, ops.cpp                            the ops as torch's dispatcher calls them
"""

from __future__ import annotations

from pathlib import Path

SOURCE = Path(__file__).parent
_SCALARS = {"fp32": ("float", "FLOAT"), "bf16": ("BFloat16", "BFLOAT16")}


def generate(n: int, dtype: str) -> str:
    """Return the text of the kernels for n streams of a dtype, "fp32" or "bf16"; it includes files of SOURCE."""
    scalar, name = _SCALARS[dtype]
    return (
        f"// Kernels for {n} streams in {dtype}.\n"
        '#include "call.h"\n#include "vectors.h"\n'
        f"namespace mhc {{\nconstexpr int N = {n};\nusing S = {scalar};\nconstexpr Type TYPE = {name};\n}}\n"
        '#include "kernels.cpp"\n'
    )


def generate_ops(version: str) -> str:
    """Return the text of the ops, for a version of torch."""
    return f'// For torch {version}.\n#include "ops.cpp"\n'
