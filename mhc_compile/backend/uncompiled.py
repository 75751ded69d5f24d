"""Calls that nobody compiled (`model.uncompiled`): how they are compiled."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as modules
from torch.utils._python_dispatch import _disable_current_modes, is_in_torch_dispatch_mode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker

from mhc_compile.backend.compilers import Compiled
from mhc_compile.backend.rewriting import config_of_markers
from mhc_compile.capture.frames import UNLIMITED
from mhc_compile.config import Config
from mhc_compile.model.sites import ATTRIBUTE, RootSites
from mhc_compile.model.uncompiled import compile_by

_SETTINGS = {**UNLIMITED, "optimize_ddp": False}  # torch's own limit would end in an error
_SHAPES: Any = torch.fx.experimental._config


def use(backend: Callable[..., Compiled]) -> None:
    """Compile such calls by this backend.

    Args:
        backend: a backend of torch.compile that takes `options`.
    """
    modes = _Modes()

    def at_once(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        """Run the rewritten graph as it is, unless the model's config names a compiler."""
        made_with, standard = config_of_markers(gm, None), Config().compiler
        named = made_with is not None and made_with.compiler != standard
        return modes.again(backend(gm, example_inputs, options={} if named else {"compiler": "eager"}))

    def compile_run(run: Callable[..., Any]) -> Callable[..., Any]:
        made = torch.compile(run, backend=at_once)
        seen: weakref.WeakSet[nn.Module] = weakref.WeakSet()

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            fixed = module not in seen and not _varies(module, (args, kwargs))
            seen.add(module)
            settings = torch._dynamo.config.patch({**_SETTINGS, "assume_static_by_default": fixed})
            with settings, _SHAPES.patch(use_duck_shape=False), modes.aside():
                return made(module, *args, **kwargs)

        return call

    compile_by(compile_run)


class _Modes(threading.local):
    """Dispatch modes of the user's, such as FlopCounterMode: Dynamo compiles nothing there, but graphs run in them."""

    def __init__(self) -> None:
        self._held: list[Any] = []

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Take them away, and the hooks by which they follow modules, which would break every forward."""
        if not is_in_torch_dispatch_mode(include_infra_modes=False):
            yield
            return
        before = self._held
        with _disable_current_modes() as found, _without_trackers():
            self._held = [*reversed(found)] or before  # none is left in a call inside of another
            try:
                yield
            finally:
                self._held = before

    def again(self, code: Compiled) -> Compiled:
        """Return code that runs under what was taken away."""

        def run(*inputs: Any) -> Any:
            with contextlib.ExitStack() as entered:
                for mode in self._held:
                    entered.enter_context(mode)
                return code(*inputs)

        return run


@contextlib.contextmanager
def _without_trackers() -> Iterator[None]:
    """Do without torch's own hooks on all modules that tell modes which one runs."""
    every: Any = (modules._global_forward_pre_hooks, modules._global_forward_hooks)
    held = [(hooks, *entry) for hooks in every for entry in hooks.items()]
    taken = [each for each in held if isinstance(getattr(each[-1], "__self__", None), ModuleTracker)]
    for hooks, key, _ in taken:
        del hooks[key]
    try:
        yield
    finally:
        for hooks, key, hook in taken:
            hooks[key] = hook


def _varies(module: nn.Module, given: Any) -> bool:
    """Tell whether code must serve all sizes from the first call on: text has as many; later code serves all anyway.

    Not where a graph break cuts the model: what Python does there may want numbers.
    """
    held = module._modules[ATTRIBUTE]
    tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    return isinstance(held, RootSites) and held.is_one_graph and not any(map(torch.is_floating_point, tensors))
