"""Calls of an upgraded model that nobody compiled: each compiles itself, so that they compute the hyper-connections.

The backend lies above this layer, and puts here what compiles a function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from mhc_compile.capture.compiled_forwards import is_compiled
from mhc_compile.errors import warn
from mhc_compile.model.sites import OwnerSites

Run = Callable[..., Any]
_compilers: list[Callable[[Run], Run]] = []


def compile_by(compiler: Callable[[Run], Run]) -> None:
    """Let calls that nobody compiled be compiled by this."""
    _compilers[:] = [compiler]


def compiles_itself(module: nn.Module, sites: OwnerSites, args: tuple[Any, ...]) -> bool:
    """Tell whether a call must compile itself; Dynamo, which captures a call, folds the first questions.

    No call does under a tracer or a transform of torch.func, where torch compiles nothing: its sites refuse to run. Nor
    that of a model whose parts are compiled one by one: these are called as they are, and the rest of them compile
    themselves.
    """
    return (
        not torch.compiler.is_dynamo_compiling()  # is_compiling() is true while any other thread compiles
        and not torch.compiler.is_exporting()
        and not sites.disabled
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and not any(isinstance(each, fx.Proxy) for each in args)
        and not any(each is not module and _is_compiled(each) for each in module.modules())
    )


def _is_compiled(module: nn.Module) -> bool:
    """Tell whether a user compiled a module, or its forward."""
    return (
        module._compiled_call_impl is not None
        or is_compiled(module.forward)
        or isinstance(module, torch._dynamo.OptimizedModule)
    )


@functools.cache
def compiled(run: Run, name: str) -> Run:
    """Return the function compiled, and say so once; one for a class, so that equal layers share compiled code."""
    warn(
        f"{name} is upgraded and was called without torch.compile, so mhc compiles each such call by itself, without"
        " Inductor. model.compile(backend='mhc') is faster; mhc_compile.plain(model) runs the original function"
    )
    (compiler,) = _compilers
    return compiler(run)
