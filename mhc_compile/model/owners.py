"""Owners: a module whose forward contains residual adds gets a subclass, whose forward marks its sites first."""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import Any, cast

from torch import nn

from mhc_compile.errors import NameTakenError, PlanMismatchError
from mhc_compile.model.sites import ATTRIBUTE, OwnerSites

_SUBCLASSES: dict[type[nn.Module], type[nn.Module]] = {}  # one per base, so that equal layers share compiled code
_CALLS = frozenset({"forward", "__call__", "_call_impl", "_wrapped_call_impl"})
_OWNERS: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def subclass(base: type[nn.Module]) -> type[nn.Module]:
    """Return the class that instances of `base` get: same name, and a forward that marks the sites first.

    Its forward has a code object of its own, since Dynamo keeps compiled code there. Instances copy and pickle as
    instances of the base, which become owners again when they are made.
    """
    if base in _SUBCLASSES:
        return _SUBCLASSES[base]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.mhc.mark()
        return base.forward(self, *args, **kwargs)  # the one that the class has now: libraries patch classes

    functools.update_wrapper(forward, base.forward)
    forward.__code__ = forward.__code__.replace(co_name=f"forward_{base.__name__}")

    def reduce(self: nn.Module, protocol: Any) -> Any:
        made = super(made_class, self).__reduce_ex__(protocol)
        return (_rebuild, (base,), *made[2:])

    body = {"forward": forward, "__reduce_ex__": reduce, "__module__": base.__module__, "__doc__": base.__doc__}
    body |= {"__qualname__": base.__qualname__, "_mhc_base": base}
    if not _reaches_forward(base.__call__):

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.mhc.mark()
            return base.__call__(self, *args, **kwargs)

        body["__call__"] = functools.update_wrapper(call, base.__call__)
    made_class: type[nn.Module] = cast("Any", type(base))(base.__name__, (base,), body)
    _SUBCLASSES[base] = made_class
    return made_class


def _reaches_forward(call: Any) -> bool:
    """Tell whether a class's `__call__` runs its forward: that of torch's does, and one that names either."""
    code = getattr(inspect.unwrap(call), "__code__", None)
    return code is None or not _CALLS.isdisjoint(code.co_names)


def _rebuild(base: type[nn.Module]) -> nn.Module:
    """Make an empty instance for copy and pickle to fill."""
    made: nn.Module = object.__new__(subclass(base))
    _OWNERS.add(made)
    return made


def living() -> dict[int, nn.Module]:
    """Return all owners by their ids."""
    return {id(module): module for module in list(_OWNERS)}


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
    _OWNERS.add(module)


def release(module: nn.Module) -> None:
    """Take subclass and sites away from the module, where it has them."""
    if is_owner(module):
        module.__class__ = type(module)._mhc_base  # type: ignore[attr-defined]  # set by subclass()
        _OWNERS.discard(module)
    if isinstance(module._modules.get(ATTRIBUTE), OwnerSites):  # not by getattr: wrappers show what they wrap
        del module._modules[ATTRIBUTE]
