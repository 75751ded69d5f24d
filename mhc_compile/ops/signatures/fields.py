"""NamedTuples that hold NamedTuples, laid flat and put together again: what makes a signature of one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, get_type_hints

from torch import Tensor

N = TypeVar("N", bound=tuple[Any, ...])

_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    Sequence[Tensor]: "Tensor[]",
    Sequence[Tensor | None]: "Tensor?[]",
    Sequence[float]: "float[]",
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
}
_END = object()


def named(kind: type[N], values: Iterable[Any]) -> N:
    """Give flat values their names.

    Args:
        kind: a NamedTuple, of Python's types, torch's tensors and other NamedTuples.
        values: one for each of its flat fields in their order; those at the end that have a default may be missing.

    Raises:
        TypeError: there are too few values, or too many.
    """
    rest = iter(values)
    made = take(kind, rest)
    if next(rest, _END) is not _END:
        raise TypeError(f"{kind.__name__} takes {len(names(kind))} values and was given more")
    return made


def take(kind: type[N], values: Iterator[Any]) -> N:
    """Give the next of flat values their names, and leave those behind them.

    Raises:
        TypeError: there are too few values.
    """
    try:
        made: N = _reader(kind)(values)
    except StopIteration:
        raise TypeError(f"{kind.__name__} takes {len(names(kind))} values and was given fewer") from None
    return made


def flat(value: tuple[Any, ...]) -> list[Any]:
    """Return the values of a NamedTuple, those of the NamedTuples in it in their places."""
    made: list[Any] = []
    for part, nested in zip(value, _nested(type(value)), strict=True):
        if nested:
            made += flat(part)
        else:
            made.append(part)
    return made


@functools.cache
def names(kind: type[tuple[Any, ...]]) -> tuple[str, ...]:
    """Return the names of flat fields."""
    return tuple(name for name, _, _ in _leaves(kind))


def position(kind: type[tuple[Any, ...]], name: str) -> int:
    """Return the index of a flat field.

    Raises:
        ValueError: there is none of that name.
    """
    return names(kind).index(name)


def filled(kind: type[tuple[Any, ...]], **values: Any) -> tuple[Any, ...]:
    """Return these values at the places of the flat fields of their names, and None at the others.

    Raises:
        ValueError: there is no field of such a name.
    """
    fields = names(kind)
    if unknown := values.keys() - set(fields):
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    return tuple(map(values.get, fields))


def schema(name: str, arguments: type[tuple[Any, ...]], results: Any) -> str:
    """Return an op's schema, as torch writes it: a NamedTuple of results is a list of tensors."""
    taken = ", ".join(f"{_TYPES[hint]} {field}{default}" for field, hint, default in _leaves(arguments))
    made = "()" if results is None else "Tensor" if results is Tensor else "Tensor[]"
    return f"{name}({taken}) -> {made}"


@functools.cache
def _reader(kind: type[Any]) -> Callable[[Iterator[Any]], Any]:
    """Return a function that takes a NamedTuple's values from an iterator; made once, since it runs at every call."""
    hints = get_type_hints(kind)
    defaults: dict[str, Any] = kind._field_defaults

    def one(field: str) -> Callable[[Iterator[Any]], Any]:
        if _is_part(hints[field]):
            return _reader(hints[field])
        return (lambda values: next(values, defaults[field])) if field in defaults else next

    takes = [one(field) for field in kind._fields]
    return lambda values: kind._make([take(values) for take in takes])


@functools.cache
def _nested(kind: type[Any]) -> tuple[bool, ...]:
    """Tell of each field whether it is a NamedTuple itself."""
    hints = get_type_hints(kind)
    return tuple(_is_part(hints[field]) for field in kind._fields)


@functools.cache
def _leaves(kind: type[Any]) -> tuple[tuple[str, Any, str], ...]:
    """Return name, type and default, as `=0` or nothing, of each flat field."""
    hints = get_type_hints(kind)
    made: list[tuple[str, Any, str]] = []
    for field in kind._fields:
        if _is_part(hints[field]):
            made += _leaves(hints[field])
        else:
            given = kind._field_defaults
            made.append((field, hints[field], f"={given[field]}" if field in given else ""))
    return tuple(made)


def _is_part(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple)
