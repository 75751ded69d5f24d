"""Every mistake has one class; each message says what happened and what to do about it."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from typing import Any

import torch

_INSIDE = (
    os.path.join(os.path.dirname(__file__), ""),
    os.path.join(os.path.dirname(torch.__file__), ""),
    contextlib.__file__,
    "<",  # generated code
)


class MHCError(Exception):
    """Base of all errors of mhc_compile.

    Catch it to catch them all.
    """


class ConfigError(MHCError, ValueError):
    """An option is misspelt, of the wrong type or out of range.

    Take the option that the message names; `help(mhc_compile.Config)` lists them all with their values.
    """


class ConfigMismatchError(MHCError):
    """The options ask for something else than the parameters that the model already holds.

    Give the options that the model was upgraded with, or `remove` its parameters and `upgrade` it again.
    """


class CaptureError(MHCError):
    """The model could not be run under capture with the arguments that were given.

    Give the arguments of a call that works on the plain model, in the mode (train or eval) that it will run in.
    """


class UnsupportedModelError(MHCError):
    """The model is of a kind that cannot be upgraded in place.

    Upgrade what the message names instead: the module inside the wrapper, or a copy of another kind.
    """


class NotCompiledError(MHCError):
    """An upgraded model ran where the mhc backend cannot compile it, which would silently drop its mHC parameters.

    Compile with `model.compile(backend='mhc')`, export with `mhc_compile.export`, or run the original function
    inside `mhc_compile.plain(model)`.
    """

    def __init__(self, site: str, transformed: bool = False) -> None:
        """Name the site whose marker ran, perhaps under a transform of torch.func."""
        super().__init__(
            f"site {site!r} ran under a transform of torch.func (vmap, grad, jvp, ...) that no compiled code holds, and"
            " torch compiles nothing under one. Compile the function that transforms the model, and let it call the"
            " model by a function: torch.compile(lambda x: torch.vmap(lambda y: model(y))(x), backend='mhc'). Or"
            " transform mhc_compile.export(model, args), which is plain torch."
            if transformed
            else f"site {site!r} ran outside torch.compile(..., backend='mhc'). An upgraded model is only itself when"
            " this backend compiles it, by model.compile(backend='mhc') or by itself, and here nothing could: another"
            " backend or a tracer has it, or Dynamo runs nothing (torch.compiler.disable, set_stance('force_eager'), a"
            " torch_dispatch mode). To export, use mhc_compile.export(model, args). To run the original function on"
            " purpose, use `with mhc_compile.plain(model):`."
        )
        self.site, self.transformed = site, transformed

    def __reduce__(self) -> tuple[type, tuple[str, bool]]:
        return type(self), (self.site, self.transformed)


class SiteNotFoundError(MHCError):
    """A compiled graph holds the marker of a site but not its residual add.

    Take away the graph break that the message names, or `remove` and `upgrade` the model as it runs now.
    """


class PlanMismatchError(MHCError):
    """A graph, a model or a checkpoint does not fit the plan frozen by upgrade.

    `remove` and `upgrade` again where the model has changed; `restore` a checkpoint into the model it was made of.
    """


class AdapterError(MHCError):
    """A file is no adapter, is damaged, or has the format of another release.

    Save it again with `save_adapter`, with the release that loads it.
    """


class NarrowParametersError(MHCError):
    """mHC parameters reach a graph in fewer than 32 bits.

    Leave mHC's parameters in fp32, as `model.half()` and autocast do: keep them out of casts that go tensor by tensor.
    """


class ShardedParametersError(MHCError):
    """A site runs while its parameters lie in pieces on several processes.

    Call `mhc_compile.shard_sites(model)` before `fully_shard`, and run the whole model.
    """

    def __init__(self, what: str) -> None:
        """Say what was found."""
        super().__init__(
            f"{what}: FSDP2 gathers parameters where a module's forward starts, and those of sites where that of the"
            " whole model does. Call mhc_compile.shard_sites(model), then fully_shard on its layers and on the model"
            " itself, and run the model, not a part of it"
        )
        self.what = what

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.what,)


class CarryError(MHCError):
    """Streams that the plan hands from one compiled graph to the next did not arrive intact.

    Pass the block's output on as it is. Where the model does something to it, `exclude` what stands behind or end
    the region there with `split`.
    """


class NotUpgradedError(MHCError):
    """The call needs a model that holds mHC parameters.

    Call `mhc_compile.upgrade(model, args)` first.
    """


class NotRestoredError(MHCError):
    """A model that was saved with hyper-connections was loaded without them, and would get new ones.

    Load it with `mhc_compile.from_pretrained`, or call `restore` with the checkpoint.
    """


class AlreadyUpgradedError(MHCError):
    """The call needs a model that holds no mHC parameters yet.

    Use the model as it is, or `remove` its parameters first.
    """


class FirstCallError(MHCError):
    """Parameters cannot be created at the first compiled call here; call upgrade beforehand.

    Call `mhc_compile.upgrade(model, args)` before the model is compiled or wrapped.
    """


class NameTakenError(MHCError):
    """A module that owns a residual add already has an attribute called `mhc`.

    Rename the attribute, or `exclude` the module's sites.
    """


class TrainedParametersError(MHCError):
    """remove() would throw away mHC parameters that have moved.

    Save them with `save_adapter` or in a checkpoint, then `remove(model, force=True)`.
    """


class VerificationError(MHCError):
    """The rewritten model does not compute what the original computed; the upgrade was rolled back.

    Report it with the model. To go on without the site that the message names, `exclude` it.
    """


class PassError(MHCError):
    """A pass broke its contract (a defect of the pass, not of the user's model).

    Report it with the text of the message, which names the pass and the node.
    """


class FactoryError(MHCError):
    """FILE.py:FACTORY, on the command line, does not give a model and its inputs.

    Let `FACTORY()` return `(model, args)` or `(model, args, kwargs)`.
    """


class RunLogError(MHCError):
    """The folder of a run holds no log that can be read.

    Give a folder that `mhc_compile.Monitor` wrote, with the release that reads it.
    """


class MissingDependencyError(MHCError, ImportError):
    """An optional dependency is needed for this call.

    Install what the message names.
    """


def import_extra(module: str, remedy: str) -> Any:
    """Import a module of an optional dependency.

    Raises:
        MissingDependencyError: it cannot be imported; the text is the remedy.
    """
    with contextlib.suppress(ImportError):
        return importlib.import_module(module)
    raise MissingDependencyError(remedy)


class CacheError(MHCError):
    """Generated kernels have no safe place on disk.

    Point `$MHC_CACHE_DIR` at a folder that is yours alone.
    """


class KernelError(MHCError):
    """Generated kernels were asked for where they cannot run.

    Take `kernels='auto'`, which uses plain torch where no kernel can run.
    """


class MHCWarning(UserWarning):
    """Something a user should know once; compiling went on."""


def warn(text: str) -> None:
    """Warn, and point at the line of the user's code: that above torch and this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_inside(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, MHCWarning, stacklevel=level)


def _is_inside(file: str) -> bool:
    return file.startswith(_INSIDE)
