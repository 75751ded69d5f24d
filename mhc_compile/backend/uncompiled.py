"""Calls that nobody compiled (`model.uncompiled`): how they are compiled."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

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

    def at_once(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        """Run the rewritten graph as it is, unless the model's config names a compiler."""
        made_with, standard = config_of_markers(gm, None), Config().compiler
        named = made_with is not None and made_with.compiler != standard
        return backend(gm, example_inputs, options={} if named else {"compiler": "eager"})

    def compile_run(run: Callable[..., Any]) -> Callable[..., Any]:
        made = torch.compile(run, backend=at_once)
        seen: weakref.WeakSet[nn.Module] = weakref.WeakSet()

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            fixed = module not in seen and not _varies(module, (args, kwargs))
            seen.add(module)
            settings = torch._dynamo.config.patch({**_SETTINGS, "assume_static_by_default": fixed})
            with settings, _SHAPES.patch(use_duck_shape=False):
                return made(module, *args, **kwargs)

        return call

    compile_by(compile_run)


def _varies(module: nn.Module, given: Any) -> bool:
    """Tell whether code must serve all sizes from the first call on: text has as many; later code serves all anyway.

    Not where a graph break cuts the model: what Python does there may want numbers.
    """
    held = module._modules[ATTRIBUTE]
    tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    return isinstance(held, RootSites) and held.is_one_graph and not any(map(torch.is_floating_point, tensors))
