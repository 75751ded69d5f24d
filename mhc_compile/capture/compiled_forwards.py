"""Forwards that the user compiled: a decorated method, or `module.forward = torch.compile(module.forward)`."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch._dynamo.eval_frame import OptimizeContext

Run = Callable[..., Any]


def is_compiled(run: Run) -> bool:
    """Tell whether a function, or a method, is what torch.compile made of one."""
    return _context(run) is not None


def original(run: Run) -> Run:
    """Return the function that torch.compile made another of, or the function itself."""
    if not is_compiled(run):
        return run
    given: Any = run
    inner: Run = given._torchdynamo_orig_callable
    return types.MethodType(inner, run.__self__) if inspect.ismethod(run) else inner


def compiled_as(run: Run, given: Run) -> Run | None:
    """Compile a function by the backend and with the settings of a compiled one; None where that is not compiled."""
    context = _context(given)
    return context(run) if context is not None else None


def is_compiled_on(module: nn.Module) -> bool:
    """Tell whether the module has its class's forward, compiled on the instance."""
    run: Run | None = vars(module).get("forward")
    if run is None or not is_compiled(run):
        return False
    while run is not None and not inspect.ismethod(run):
        run = getattr(run, "__wrapped__", None)
    return run is not None and run.__self__ is module and run.__func__ is type(module).forward


@contextlib.contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Let a run call what modules are written as, not what the user compiled of them."""
    called = {each: each._compiled_call_impl for each in model.modules() if each._compiled_call_impl is not None}
    forwards = {each: vars(each).get("forward") for each in model.modules() if is_compiled(each.forward)}
    try:
        for module in called:
            module._compiled_call_impl = None
        for module in forwards:
            module.forward = original(module.forward)
        yield
    finally:
        for module, call in called.items():
            module._compiled_call_impl = call
        for module, forward in forwards.items():
            del module.forward
            if forward is not None:
                module.forward = forward


def _context(run: Run) -> OptimizeContext | None:
    """Return what compiles functions as this one was compiled: torch keeps it in the function that it makes."""
    if not hasattr(run, "_torchdynamo_orig_callable"):
        return None
    held = inspect.getclosurevars(run).nonlocals.values()
    return next((each for each in held if isinstance(each, OptimizeContext)), None)
