"""Work side by side in processes of their own until time is over, and kernels compiled ahead in that way."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from bench.kernels.support.context import Context
from bench.kernels.support.generated import Generated, Tiles
from bench.kernels.support.reasons import reason
from mhc_compile.codegen import Spec
from mhc_compile.codegen.runtime import interpreter

A = TypeVar("A")
R = TypeVar("R")
SMALL = 64  # tokens to compile with; kernels are not specialised for their number


def each(function: Callable[[A], R], items: Sequence[A], context: Context, *, fresh: bool = False) -> Iterator[R]:
    """Yield what the function returns for each item, as it comes; stop when time is over.

    With `fresh` each has a process of its own: what one breaks on the device does not break the next.
    """
    if context.jobs <= 1:
        if context.dry:
            interpreter.mend()
        for item in items:
            if context.deadline.over:
                return
            yield function(item)
        return
    processes = min(context.jobs, max(1, len(items)))
    mend = interpreter.mend if context.dry else None
    with multiprocessing.get_context("spawn").Pool(processes, mend, (), 1 if fresh else None) as pool:
        results = pool.imap_unordered(function, items)
        for _ in items:
            try:
                yield results.next(timeout=context.deadline.left)
            except multiprocessing.TimeoutError:
                return


def compile_ahead(wanted: Sequence[tuple[Spec, Tiles | None]], context: Context) -> list[str]:
    """Compile kernels into Triton's cache; return why each is not there, "" where it is."""
    if context.dry:
        return [""] * len(wanted)
    problems = ["not compiled in time"] * len(wanted)
    items = [(number, spec, tiles, context.device) for number, (spec, tiles) in enumerate(wanted)]
    for number, problem in each(_compile, items, context):
        problems[number] = problem
    return problems


def _compile(item: tuple[int, Spec, Tiles | None, str]) -> tuple[int, str]:
    number, spec, tiles, device = item
    try:
        kernels = Generated(spec)
        given = kernels.given(SMALL, device)
        made = kernels.forward(given, tiles)
        kernels.backward(given, made, kernels.upstream(SMALL, device), tiles)
    except Exception as error:
        return number, reason(error)
    return number, ""
