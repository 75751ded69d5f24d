"""Owners: a module whose forward contains residual adds gets a subclass, whose forward marks its sites first."""

from __future__ import annotations

import functools
from typing import Any, cast

from torch import nn

from mhc_compile.errors import NameTakenError, PlanMismatchError
from mhc_compile.model.sites import ATTRIBUTE, OwnerSites

_SUBCLASSES: dict[type[nn.Module], type[nn.Module]] = {}  # one per base, so that equal layers share compiled code


def subclass(base: type[nn.Module]) -> type[nn.Module]:
    """Return the class that instances of `base` get: same name, and a forward that marks the sites first.

    Its forward has a code object of its own, since Dynamo keeps compiled code there. Instances copy and pickle as
    instances of the base, which become owners again when they are made.
    """
    if base in _SUBCLASSES:
        return _SUBCLASSES[base]
    plain_forward = base.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.mhc.mark()
        return plain_forward(self, *args, **kwargs)

    functools.update_wrapper(forward, plain_forward)
    forward.__code__ = forward.__code__.replace(co_name=f"forward_{base.__name__}")

    def reduce(self: nn.Module, protocol: Any) -> Any:
        made = super(made_class, self).__reduce_ex__(protocol)
        return (_rebuild, (base,), *made[2:])

    body = {"forward": forward, "__reduce_ex__": reduce, "__module__": base.__module__, "__doc__": base.__doc__}
    body |= {"__qualname__": base.__qualname__, "_mhc_base": base}
    made_class: type[nn.Module] = cast("Any", type(base))(base.__name__, (base,), body)
    _SUBCLASSES[base] = made_class
    return made_class


def _rebuild(base: type[nn.Module]) -> nn.Module:
    """Make an empty instance for copy and pickle to fill."""
    return object.__new__(subclass(base))


def is_owner(module: nn.Module) -> bool:
    """Tell whether the module has the subclass."""
    return getattr(type(module), "_mhc_base", None) is not None


def check(module: nn.Module, path: str) -> None:
    """Refuse a module that cannot become an owner.

    Raises:
        NameTakenError: it has an attribute `mhc` of its own.
        PlanMismatchError: its forward is replaced on the instance, so a subclass would never run.
    """
    if hasattr(module, ATTRIBUTE) and not isinstance(getattr(module, ATTRIBUTE), OwnerSites):
        raise NameTakenError(
            f"{path or 'the model'} ({type(module).__name__}) has an attribute `mhc` already, where its"
            f" hyper-connections would live; rename it, or leave the module out:"
            f" Config(exclude=({(path + '.*').lstrip('.')!r},))"
        )
    if "forward" in vars(module):
        raise PlanMismatchError(
            f"{path or 'the model'} has a forward that was replaced on the instance (by a hook library?), so its sites"
            " could not be marked; call mhc_compile.upgrade before patching forward"
        )


def adopt(module: nn.Module) -> None:
    """Give the module its subclass, unless it has it."""
    if not is_owner(module):
        module.__class__ = subclass(type(module))


def release(module: nn.Module) -> None:
    """Take subclass and sites away from the module, where it has them."""
    if is_owner(module):
        module.__class__ = type(module)._mhc_base  # type: ignore[attr-defined]  # set by subclass()
    if isinstance(getattr(module, ATTRIBUTE, None), OwnerSites):
        delattr(module, ATTRIBUTE)
