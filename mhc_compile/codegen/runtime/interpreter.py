"""Triton's interpreter, mended: it runs kernels on the CPU, for tests and for counting bytes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

VARIABLE = "TRITON_INTERPRET"  # read by Triton at its import


def is_on() -> bool:
    """Return whether this process interprets kernels, whatever the variable says by now."""
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    return not isinstance(tl.sum, JITFunction)


@functools.cache
def mend() -> None:
    """Mend what the interpreter gets wrong (as of triton 3.9), in this process: else kernels would seem at fault.

    It multiplies the bits of bf16 operands of `dot` as integers, truncates to bf16 where a GPU rounds to nearest, knows
    no products by bf16 parts, and its loops over a bound known at run time fail with NumPy 2.4 (mended in triton 3.9).
    """
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, cast, patch = builder.create_dot, builder.cast_impl, interpreter._patch_lang_tensor

    def wide(operand: Any) -> Any:
        return handle(_widen(operand.data), tl.float32) if operand.dtype.scalar == tl.bfloat16 else operand

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, wide(a), wide(b), *rest)

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            return handle(_round(source.data), tl.bfloat16)
        return cast(self, source, to)

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    builder.create_dot, builder.cast_impl, interpreter._patch_lang_tensor = create_dot, cast_impl, patch_tensor
    builder.create_fp_trunc = cast_impl
    known = interpreter.InterpreterOptions()
    more = (*known.allowed_dot_input_precisions, "bf16x3", "bf16x6")  # it multiplies in fp32 whatever is asked for
    interpreter.interpreter_builder.options = dataclasses.replace(known, allowed_dot_input_precisions=more)


def _widen(bits: Any) -> Any:
    """Return fp32 for the bits of bf16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _round(values: Any) -> Any:
    """Return the bits of the nearest bf16, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest)
