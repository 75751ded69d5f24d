"""The subclass that an owner gets: its forward marks its sites first, and nothing else of it shows them as a layer."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn

from mhc_compile.capture import compiled_forwards
from mhc_compile.model.sites import ATTRIBUTE
from mhc_compile.model.uncompiled import compiled, compiles_itself

Around = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
REPLACED = "_mhc_forward"  # where an owner keeps a forward that was put on the instance before it was one
_MADE: dict[tuple[type[nn.Module], bool], type[nn.Module]] = {}  # one each, so that equal layers share compiled code
_AROUND: dict[tuple[type[nn.Module], Around], type[nn.Module]] = {}
_KNOWN: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_WALKS = frozenset({"children", "named_children"})
_CALLS = frozenset({"forward", "__call__", "_call_impl", "_wrapped_call_impl"})
_CHANGES = ("insert", "append", "extend", "pop", "__delitem__", "__setitem__", "__iadd__")  # of containers


def subclass(base: type[nn.Module], replaced: bool = False) -> type[nn.Module]:
    """Return the class that instances of `base` get: same name, and a forward that marks the sites first.

    It then runs the base's, or the one that was put on the instance. Instances copy and pickle as instances of the
    base, which become owners again when they are made. Where the base walks over its children, or is a container, it
    does not meet the sites, which it would run as a layer.
    """
    if (base, replaced) not in _MADE:
        body: dict[str, Any] = {name: getattr(base, name) for name in ("__module__", "__doc__", "__qualname__")}
        body |= {"_mhc_base": base, "__reduce_ex__": _reduce(base, replaced)}
        body["forward"] = _replaced_forward(base) if replaced else _forward(base, lambda: made)
        if _asks_for_children(base):
            body |= _hidden(base)
        if not _reaches_forward(base.__call__):
            body["__call__"] = _call(base, lambda: made)
        if issubclass(base, _CONTAINERS):
            body |= _as_container(base)
        made = _MADE[base, replaced] = _derive(base, body)
    return _MADE[base, replaced]


def know(module: nn.Module) -> None:
    """Remember an owner, or a model with a plan, for as long as it lives."""
    _KNOWN.add(module)


def known() -> dict[str, nn.Module]:
    """Return what is remembered by id, as text: a frame's sources do not always lead to its modules."""
    return {str(id(module)): module for module in list(_KNOWN)}


def is_owner(module: nn.Module) -> bool:
    """Tell whether the module has the subclass."""
    return getattr(type(module), "_mhc_base", None) is not None


def base_of(cls: type[nn.Module]) -> type[nn.Module]:
    """Return a class without our subclass in it: parametrizations made later derive from that."""
    base = cls.__dict__.get("_mhc_base")
    if base is not None:
        return cast("type[nn.Module]", base)
    if getattr(cls, "_mhc_base", None) is None:
        return cls
    if "_mhc_around" in vars(cls):
        below, around = vars(cls)["_mhc_around"]
        return _with_call(base_of(below), around)
    body = {name: held for name, held in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    parent, *_ = (base_of(each) for each in cls.__bases__)
    return _derive(parent, body | {"__name__": cls.__name__})


def _derive(base: type[nn.Module], body: dict[str, Any]) -> type[nn.Module]:
    """Derive a class, telling the base if it will hear of one: Hugging Face's layers wrap the forward there.

    Metaclasses are not told, nor is an `__init_subclass__` that refuses the class, as one that has its name already.
    """
    name = body.pop("__name__", base.__name__)
    made = type.__new__(type(base), name, (_Unrelated,), body)
    made.__bases__ = (base,)
    with contextlib.suppress(Exception):
        super(made, made).__init_subclass__()
    return made


class _Unrelated:
    """The base of a class until it gets its own."""


def _forward(base: type[nn.Module], made: Callable[[], type[nn.Module]]) -> Callable[..., Any]:
    """Return the forward of the class that is made; by `super`, for Dynamo does not look into each class by its name.

    It runs the forward that the base has at that moment, since libraries patch classes.
    """

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.mhc.mark()
        return super(made(), self).forward(*args, **kwargs)

    return _entered(run, base.forward, base.__name__)


def _replaced_forward(base: type[nn.Module]) -> Callable[..., Any]:
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.mhc.mark()
        return getattr(self, REPLACED)(*args, **kwargs)

    return _entered(run, compiled_forwards.original(base.forward), base.__name__)  # nobody compiled this one


def _call(base: type[nn.Module], made: Callable[[], type[nn.Module]]) -> Callable[..., Any]:
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.mhc.mark()
        return super(made(), self).__call__(*args, **kwargs)

    return _entered(run, base.__call__, base.__name__)


def _entered(run: Callable[..., Any], original: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return what a class has in place of the original: `run`, which compiles itself where nobody compiles it.

    Each has a code object of its own, since Dynamo keeps compiled code there. What a decorator compiles stays so.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if compiles_itself(self, self.mhc, args):
            return compiled(run, name)(self, *args, **kwargs)
        return run(self, *args, **kwargs)

    for made in (run, forward):
        made.__code__ = made.__code__.replace(co_name=f"forward_{name}")
        functools.update_wrapper(made, compiled_forwards.original(original))
    return compiled_forwards.compiled_as(run, original) or forward


def _reaches_forward(call: Any) -> bool:
    """Tell whether a class's `__call__` runs its forward: torch's does, and one that names either."""
    code = getattr(inspect.unwrap(call), "__code__", None)
    return code is None or not _CALLS.isdisjoint(code.co_names)


def _reduce(base: type[nn.Module], replaced: bool) -> Callable[..., Any]:
    def reduce(self: Any, protocol: Any) -> Any:
        made = base.__reduce_ex__(self, protocol)
        return (rebuild, (base, replaced), *made[2:])

    return reduce


def rebuild(base: type[nn.Module], replaced: bool = False) -> nn.Module:
    """Make an empty instance for copy and pickle to fill."""
    made: nn.Module = object.__new__(subclass(base, replaced))
    know(made)
    return made


# -- what stands around a call ----------------------------------------------------------------------------------------


def around_calls(module: nn.Module, around: Around) -> None:
    """Let `around(module, call, args, kwargs)` run instead of each call of a module, outside of what is compiled.

    No hook: those are compiled with the module, by `module.compile()`.
    """
    if all(vars(each).get("_mhc_around", (None, None))[1] is not around for each in type(module).__mro__):
        module.__class__ = _with_call(type(module), around)


def _with_call(base: type[nn.Module], around: Around) -> type[nn.Module]:
    if (base, around) not in _AROUND:

        @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]  # torch leaves it untyped
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return around(self, super(made, self).__call__, args, kwargs)

        def reduce(self: Any, protocol: Any) -> Any:
            make, given, *rest = super(made, self).__reduce_ex__(protocol)
            return (_rebuild_around, (make, tuple(base if each is made else each for each in given), around), *rest)

        body: dict[str, Any] = {name: getattr(base, name) for name in ("__module__", "__doc__", "__qualname__")}
        body |= {"_mhc_around": (base, around), "__call__": call, "__reduce_ex__": reduce}
        made = _AROUND[base, around] = _derive(base, body)
    return _AROUND[base, around]


def _rebuild_around(make: Callable[..., nn.Module], given: tuple[Any, ...], around: Around) -> nn.Module:
    made = make(*given)
    around_calls(made, around)
    return made


# -- a walk does not meet the sites -----------------------------------------------------------------------------------


def walks(cls: type[nn.Module]) -> bool:
    """Tell whether a class's own code walks over its children: then it must not meet the sites among them."""
    return issubclass(cls, _CONTAINERS) or _asks_for_children(cls)


def _asks_for_children(cls: type[nn.Module]) -> bool:
    classes = (each for each in cls.__mro__ if each not in nn.Module.__mro__)
    functions = (function for each in classes for function in vars(each).values() if inspect.isfunction(function))
    return any(not _WALKS.isdisjoint(inspect.unwrap(function).__code__.co_names) for function in functions)


def _hidden(base: type[nn.Module]) -> dict[str, Any]:
    """Return walks over children without the sites; torch, which moves, shards and initialises modules, sees all."""

    def named_children(self: Any) -> Iterator[tuple[str, nn.Module]]:
        shown = _called_by_torch()
        return ((name, child) for name, child in base.named_children(self) if shown or name != ATTRIBUTE)

    def children(self: Any) -> Iterator[nn.Module]:
        shown = _called_by_torch()
        return (child for name, child in base.named_children(self) if shown or name != ATTRIBUTE)

    return {"named_children": named_children, "children": children}


def _called_by_torch() -> bool:
    """Tell whether who calls this, is called by torch; code that Dynamo traces is the user's."""
    traced = torch.compiler.is_dynamo_compiling()
    return not traced and str(sys._getframe(2).f_globals.get("__name__")).startswith("torch.")


def _held(container: Any) -> dict[str, nn.Module]:
    return {name: child for name, child in container._modules.items() if name != ATTRIBUTE}


def _as_container(base: Any) -> dict[str, Any]:
    """Return what a container does with its items, without the sites among them."""

    def iterate(self: Any) -> Iterator[Any]:
        return iter(_held(self) if hasattr(base, "keys") else _held(self).values())

    def length(self: Any) -> int:
        return len(self._modules) - (ATTRIBUTE in self._modules)

    def keys(self: Any) -> Any:
        return _held(self).keys()

    def values(self: Any) -> Any:
        return _held(self).values()

    def items(self: Any) -> Any:
        return _held(self).items()

    def get(self: Any, index: Any) -> Any:
        if isinstance(index, str):
            return self._modules[index]
        if isinstance(index, slice):
            some = list(_held(self).items())[index]
            return base(OrderedDict(some)) if issubclass(base, nn.Sequential) else base(child for _, child in some)
        return list(_held(self).values())[index]

    made: dict[str, Any] = {"__iter__": iterate, "__len__": length, "__getitem__": get}
    if hasattr(base, "keys"):
        made |= {"keys": keys, "values": values, "items": items}
    return made | {name: _changing(getattr(base, name)) for name in _CHANGES if hasattr(base, name)}


def _changing(method: Any) -> Callable[..., Any]:
    """Let a container change its items, which it numbers anew, while the sites are not among them."""

    def change(self: Any, *args: Any, **kwargs: Any) -> Any:
        sites = self._modules.pop(ATTRIBUTE)
        try:
            return method(self, *args, **kwargs)
        finally:
            self._modules[ATTRIBUTE] = sites

    return functools.update_wrapper(change, method)
