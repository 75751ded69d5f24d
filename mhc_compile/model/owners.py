"""Owners: a module whose forward contains residual adds gets a subclass, whose forward marks its sites first."""

from __future__ import annotations

from torch import nn

from mhc_compile.capture.compiled_forwards import compiled_as, is_compiled_on
from mhc_compile.errors import NameTakenError
from mhc_compile.model.sites import ATTRIBUTE, OwnerSites
from mhc_compile.model.subclasses import REPLACED, base_of, is_owner, know, subclass, walks

__all__ = ["adopt", "check", "is_owner", "release", "walks"]


def check(module: nn.Module, path: str) -> None:
    """Refuse a module that cannot become an owner.

    Raises:
        NameTakenError: it has an attribute `mhc` of its own.
    """
    if ATTRIBUTE in {*vars(module), *module._parameters, *module._buffers, *module._modules} or hasattr(
        type(module), ATTRIBUTE
    ):
        if isinstance(module._modules.get(ATTRIBUTE), OwnerSites):
            return
        raise NameTakenError(
            f"{path or 'the model'} ({type(module).__name__}) has an attribute `mhc` already, where its"
            f" hyper-connections would live; rename it, or leave the module out:"
            f" Config(exclude=({(path + '.*').lstrip('.')!r},))"
        )


def adopt(module: nn.Module) -> None:
    """Give the module its subclass, unless it has it; a forward that was put on the instance is what that runs."""
    if not is_owner(module):
        if "forward" in vars(module) and not is_compiled_on(module):
            vars(module)[REPLACED] = vars(module).pop("forward")
        _change_class(module, subclass(type(module), REPLACED in vars(module)))
    know(module)


def release(module: nn.Module) -> None:
    """Take subclass and sites away from the module, where it has them."""
    if is_owner(module):
        _change_class(module, base_of(type(module)))
    if REPLACED in vars(module):
        vars(module)["forward"] = vars(module).pop(REPLACED)
    if isinstance(module._modules.get(ATTRIBUTE), OwnerSites):  # not by getattr: a wrapper shows what it wraps
        del module._modules[ATTRIBUTE]


def _change_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class, and with it a forward of the class's that was compiled on the instance."""
    compiled = is_compiled_on(module)
    module.__class__ = cls
    if compiled:
        vars(module)["forward"] = compiled_as(cls.forward.__get__(module), module.forward)
