"""A run that leaves a model as it was: buffers, attributes, hooks and random state are put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mhc_compile.errors import warn

_OF_TORCH = frozenset(vars(nn.Module())) - {"training"}  # the tables of a module


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put back what a run of a model changes: batch norm's counts, caches, counters of calls, dropout's draws.

    Buffers get their values, and are the tensors that they were. Attributes are what they were, but what was changed
    inside of them (a list that was appended to) stays so. Hooks that the run registered go, as an attribute does that
    says they are there. Parameters that the run itself changes (a teacher's moving average) stay so, with a warning: a
    copy of every parameter would be dear.
    """
    scripted = torch.jit.ScriptModule  # has its buffers in C++, where they stay the tensors that they are
    tables = [(each._buffers, dict(each._buffers)) for each in model.modules() if not isinstance(each, scripted)]
    buffers = [(held, _copy(held)) for held in model.buffers()]
    versions = {name: (held, _version(held)) for name, held in model.named_parameters() if not is_lazy(held)}
    attributes = {module: (type(module), _own(module)) for module in model.modules()}
    hooks = [(table, set(table)) for module in model.modules() for table in _hooks(module)]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        for module, (kind, saved) in attributes.items():
            if type(module) is kind:  # modules that make their parameters at the first call have become others
                _put_back(module, saved)
        for registered, known in hooks:
            for handle in registered.keys() - known:
                del registered[handle]
        for table, held_before in tables:
            table.update({name: held for name, held in held_before.items() if name in table})
        for held, kept in buffers:
            _restore(held, kept)
        changed = [name for name, (held, version) in versions.items() if _version(held) != version]
        if changed:
            warn(
                f"running the model changed its own parameters, such as {changed[0]!r}, which mhc_compile does not put"
                " back: load them again, or run it on a copy.deepcopy(model)"
            )


def _copy(buffer: Tensor) -> Tensor | None:
    return None if is_lazy(buffer) or buffer.is_meta else buffer.clone()


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; one of inference mode does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _own(module: nn.Module) -> dict[str, Any]:
    return {name: held for name, held in vars(module).items() if name not in _OF_TORCH}


def _hooks(module: nn.Module) -> list[dict[int, Any]]:
    return [held for name, held in vars(module).items() if name in _OF_TORCH and "_hooks" in name]


def _put_back(module: nn.Module, saved: dict[str, Any]) -> None:
    for name in _own(module).keys() - saved.keys():
        del vars(module)[name]
    vars(module).update(saved)


@torch.no_grad()
def _restore(buffer: Tensor, kept: Tensor | None) -> None:
    """Let a buffer have its values again; a write where there is no change would count as one."""
    if kept is not None and kept.shape == buffer.shape and (kept.is_sparse or not kept.equal(buffer)):
        buffer.copy_(kept)
