"""Work in another process: Triton decides at its import, for good, whether kernels are compiled or interpreted."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

from mhc_compile.codegen.runtime import interpreter

P = ParamSpec("P")
R = TypeVar("R")


def call(interpret: bool, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function where kernels are interpreted, or compiled: here if it fits, else in a process kept for it.

    The function, its arguments and what it returns or raises must pickle.
    """
    if interpreter.is_on() != interpret:
        return _pool(interpret).submit(function, *args, **kwargs).result()
    if interpret:
        interpreter.mend()
    return function(*args, **kwargs)


@functools.cache
def _pool(interpret: bool) -> ProcessPoolExecutor:
    """Start the process, with the variable in its environment from the first moment."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    before = os.environ.get(interpreter.VARIABLE)
    os.environ[interpreter.VARIABLE] = str(int(interpret))
    try:
        pool.submit(interpreter.mend if interpret else interpreter.is_on).result()
    finally:
        del os.environ[interpreter.VARIABLE]
        if before is not None:
            os.environ[interpreter.VARIABLE] = before
    return pool
