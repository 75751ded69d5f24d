"""NamedTuples that hold NamedTuples, laid flat and put together again: what makes a signature of one."""

from __future__ import annotations

import functools
import itertools
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


def named(kind: type[N], values: Iterable[Any]) -> N:
    """Give flat values their names.

    Args:
        kind: a NamedTuple, of Python's types, torch's tensors and other NamedTuples.
        values: one for each of its flat fields in their order; those at the end that have a default may be missing.

    Raises:
        TypeError: there are too few values, or too many.
    """
    made: N = _reader(kind)(*values)
    return made


def take(kind: type[N], values: Iterator[Any]) -> N:
    """Give the next of flat values their names, and leave those behind them.

    Raises:
        TypeError: there are too few values.
    """
    return named(kind, itertools.islice(values, len(names(kind))))


def flat(value: tuple[Any, ...]) -> list[Any]:
    """Return the values of a NamedTuple, those of the NamedTuples in it in their places."""
    made: list[Any] = _writer(type(value))(value)
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
        TypeError: there is no field of such a name.
    """
    made: tuple[Any, ...] = _filler(kind)(**values)
    return made


def schema(name: str, arguments: type[tuple[Any, ...]], results: Any) -> str:
    """Return an op's schema, as torch writes it: a NamedTuple of results is a list of tensors."""
    taken = ", ".join(f"{_TYPES[hint]} {field}{default}" for field, hint, default in _leaves(arguments))
    made = "()" if results is None else "Tensor" if results is Tensor else "Tensor[]"
    return f"{name}({taken}) -> {made}"


# Every call of an op goes through the next three. So each is compiled once per signature, to an expression such as
# `lambda x, offset, scale, n: Seam(x, Tail(offset, scale), n)`.


@functools.cache
def _reader(kind: type[tuple[Any, ...]]) -> Callable[..., Any]:
    """Return a function from flat values to the NamedTuple."""
    kinds: dict[str, Any] = {}

    def made(kind: type[tuple[Any, ...]]) -> str:
        kinds[kind.__name__] = kind
        parts = (made(hint) if _is_part(hint) else name for name, hint in _fields(kind))
        return f"{kind.__name__}({', '.join(parts)})"

    return _compiled(kind, ", ".join(name + default for name, _, default in _leaves(kind)), made(kind), kinds)


@functools.cache
def _writer(kind: type[tuple[Any, ...]]) -> Callable[[Any], Any]:
    """Return a function from the NamedTuple to its flat values."""

    def found(kind: type[tuple[Any, ...]], at: str) -> list[str]:
        if not any(_is_part(hint) for _, hint in _fields(kind)):
            return [f"*{at}"]
        inside = (found(hint, f"{at}.{name}") if _is_part(hint) else [f"{at}.{name}"] for name, hint in _fields(kind))
        return list(itertools.chain(*inside))

    return _compiled(kind, "value", f"[{', '.join(found(kind, 'value'))}]", {})


@functools.cache
def _filler(kind: type[tuple[Any, ...]]) -> Callable[..., Any]:
    """Return a function from flat values by name, None for those that are not given, to their tuple."""
    given = ", ".join(f"{name}=None" for name in names(kind))
    return _compiled(kind, f"*, {given}", f"({', '.join(names(kind))},)", {})


def _compiled(kind: type[tuple[Any, ...]], parameters: str, result: str, kinds: dict[str, Any]) -> Callable[..., Any]:
    function: Callable[..., Any] = eval(f"lambda {parameters}: {result}", kinds)
    function.__name__ = function.__qualname__ = kind.__name__  # what a TypeError tells
    return function


def _fields(kind: Any) -> list[tuple[str, Any]]:
    hints = get_type_hints(kind)
    return [(name, hints[name]) for name in kind._fields]


@functools.cache
def _leaves(kind: type[tuple[Any, ...]]) -> tuple[tuple[str, Any, str], ...]:
    """Return name, type and default, as `=0` or nothing, of each flat field."""
    made: list[tuple[str, Any, str]] = []
    given: dict[str, Any] = kind._field_defaults  # type: ignore[attr-defined]  # of a NamedTuple
    for field, hint in _fields(kind):
        made += _leaves(hint) if _is_part(hint) else [(field, hint, f"={given[field]}" if field in given else "")]
    return tuple(made)


def _is_part(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple)
