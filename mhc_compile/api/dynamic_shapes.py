"""Which sizes of an exported graph stay free, said as torch.export says it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch._dynamo import mark_dynamic, maybe_mark_dynamic
from torch.export import Dim
from torch.utils import _pytree as pytree

from mhc_compile.errors import ConfigError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Mark = Callable[[Tensor, int], None]


def names_of(model: nn.Module, args: Sequence[Any]) -> list[str]:
    """Return the names of positional arguments, as the model's forward has them; `arg_0` and so on behind `*args`."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [named[i] if i < len(named) else f"arg_{i}" for i in range(len(args))]


def marked(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> Arguments:
    """Return arguments that Dynamo takes for examples of other sizes; those of the user stay unmarked.

    Args:
        model: the model.
        args: positional arguments.
        kwargs: keyword arguments.
        dynamic_shapes: as `torch.export.export` takes it: a dict from names of arguments, or a tuple of all of them in
            order; for a tensor None, or for its dimensions a dict or a tuple of `torch.export.Dim("name")`,
            `Dim.DYNAMIC`, `Dim.AUTO`, `Dim.STATIC` or None.

    Raises:
        ConfigError: it names what is no argument, or fits its arguments not.
    """
    names = names_of(model, args)
    if isinstance(dynamic_shapes, (tuple, list)):
        if len(dynamic_shapes) != len(args) + len(kwargs):
            raise ConfigError(
                f"dynamic_shapes has {len(dynamic_shapes)} entries for {len(args) + len(kwargs)} arguments; give one"
                " for each, None where nothing is dynamic, or a dict from names"
            )
        dynamic_shapes = dict(zip((*names, *kwargs), dynamic_shapes, strict=True))
    if not isinstance(dynamic_shapes, Mapping):
        raise ConfigError(f"dynamic_shapes must be a dict from names of arguments, or a tuple, not {dynamic_shapes!r}")
    if unknown := [name for name in dynamic_shapes if name not in (*names, *kwargs)]:
        raise ConfigError(
            f"dynamic_shapes names {unknown[0]!r}, which is no argument of this call; there are"
            f" {', '.join((*names, *kwargs)) or 'none'}"
        )
    new = [_marked(arg, dynamic_shapes.get(name), name) for name, arg in zip(names, args, strict=True)]
    return tuple(new), {name: _marked(arg, dynamic_shapes.get(name), name) for name, arg in kwargs.items()}


def _marked(value: Any, spec: Any, place: str) -> Any:
    """Return the value with its tensors marked, in place of themselves."""
    if spec is None:
        return value
    value = pytree.tree_map_only(Tensor, lambda held: held.detach().requires_grad_(held.requires_grad), value)
    _mark_tensors(value, spec, place)  # of what was built, since caches copy what they are built of
    return value


def _mark_tensors(value: Any, spec: Any, place: str) -> None:
    if spec is None:
        return
    if isinstance(value, Tensor):
        _mark_sizes(value, spec, place)
        return
    parts, structure = pytree.tree_flatten(value, is_leaf=lambda held: held is not value)
    keys: list[Any] = list(value) if isinstance(value, Mapping) else list(range(len(parts)))
    if isinstance(value, Mapping) and isinstance(spec, Mapping) and spec.keys() <= set(keys):
        spec = [spec.get(key) for key in keys]
    if not isinstance(spec, (tuple, list)) or len(spec) != len(parts) or structure.is_leaf():
        raise ConfigError(
            f"dynamic_shapes of {place} is {spec!r}, which fits no {type(value).__name__}; nest it as the argument is"
        )
    for part, each, key in zip(parts, spec, keys, strict=True):
        _mark_tensors(part, each, f"{place}[{key!r}]")


def _mark_sizes(tensor: Tensor, spec: Any, place: str) -> None:
    dims = dict(enumerate(spec)) if isinstance(spec, (tuple, list)) else spec
    if not isinstance(dims, Mapping) or not all(isinstance(d, int) and -tensor.dim() <= d < tensor.dim() for d in dims):
        raise ConfigError(
            f"dynamic_shapes of {place} is {spec!r}; for a tensor with {tensor.dim()} dimensions give a dict such as"
            " {0: torch.export.Dim('batch')}, or an entry for each"
        )
    for dim, size in dims.items():
        if (mark := _mark(size, f"{place}, dimension {dim}")) is not None:
            mark(tensor, dim % tensor.dim())


def _mark(size: Any, place: str) -> Mark | None:
    """Return what marks a dimension of this size; None where it stays as it is."""
    hints: Any = Dim  # Dim.AUTO and its like tell by their type what they are, with a range or without
    kind = getattr(size, "type", None)
    if size is None or isinstance(size, int) or kind is hints.STATIC.type:
        return None
    if kind is hints.AUTO.type:
        made: Mark = maybe_mark_dynamic
        return made
    if isinstance(size, Dim) or kind is hints.DYNAMIC.type:
        low, high = getattr(size, "min", None), getattr(size, "max", None)
        bounds = {"min": low or 0, "max": high} if low or isinstance(high, int) else {}  # no bound is no int
        return functools.partial(mark_dynamic, **bounds)
    raise ConfigError(f"dynamic_shapes of {place} is {size!r}, not a torch.export.Dim")
