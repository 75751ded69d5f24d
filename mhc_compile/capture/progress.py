"""A bar that says how far Dynamo is with a large model, where somebody sees it and tqdm is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

AFTER = 2.0  # seconds: who waits less needs no bar
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@contextlib.contextmanager
def progress(model: nn.Module, doing: str) -> Iterator[None]:
    """Show how many of a model's modules Dynamo has begun to trace inside, in a terminal or a notebook.

    Args:
        model: the model.
        doing: what it is traced for, in a few words.
    """
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield
        return
    called = sum(not isinstance(module, _CONTAINERS) for module in model.modules())
    bar = tqdm(total=called, desc=doing, delay=AFTER, disable=None, leave=False, unit=" modules")
    with bar, contextlib.nullcontext() if bar.disable else _each_module_traced(bar.update):
        yield


@contextlib.contextmanager
def _each_module_traced(tell: Any) -> Iterator[None]:
    """Call `tell` whenever Dynamo enters a module for the first time."""
    tracing: Any = torch._dynamo.variables.nn_module
    enter, seen = tracing.record_nn_module_stack, set[int]()

    def record(key: str, source: Any, tx: Any, module: nn.Module) -> Any:
        if id(module) not in seen:
            seen.add(id(module))
            tell()
        return enter(key, source, tx, module)

    tracing.record_nn_module_stack = record
    try:
        yield
    finally:
        tracing.record_nn_module_stack = enter
