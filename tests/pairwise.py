"""Cases of a test that has many axes: every two values of every two axes meet, though not every combination does."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

Row = dict[str, Any]
Allowed = Callable[[Mapping[str, Any]], bool]
Pair = tuple[str, int, str, int]  # two axes, each with the place of a value: 1 and True are different values

TRIES = 400  # at a combination for a pair; a pair that finds none does not exist
CANDIDATES = 40  # for every next row, of which the one is taken that has most new pairs


def pairwise(allowed: Allowed | None = None, into: str | None = None, **axes: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize a test over axes, by the names of its parameters.

    Args:
        allowed: tells whether a combination exists.
        into: the name of one parameter that takes all values, as a dictionary.
        axes: the values of each.
    """
    return _parametrized(pairs(allowed, **axes), list(axes), into)


def sampled(
    count: int, allowed: Allowed | None = None, into: str | None = None, **axes: Sequence[Any]
) -> pytest.MarkDecorator:
    """Parametrize a test over so many of all combinations, drawn at random and always the same (see `pairwise`)."""
    draw = random.Random(0)
    drawn = ({name: draw.choice(axes[name]) for name in axes} for _ in itertools.count())
    there = (row for row in drawn if allowed is None or allowed(row))
    return _parametrized(list(itertools.islice(there, count)), list(axes), into)


def pairs(allowed: Allowed | None = None, **axes: Sequence[Any]) -> list[Row]:
    """Return combinations in which every two values of every two axes meet, where any combination has them.

    Row by row, the first pair that is missing gets the combination that has most of the missing ones. Libraries for
    this lose pairs without a word where not every combination is allowed.
    """
    draw = random.Random(0)
    if len(axes) == 1:
        return [{name: value} for name, values in axes.items() for value in values]
    missing = dict.fromkeys(_pairs_of({name: range(len(values)) for name, values in axes.items()}))
    rows: list[Row] = []
    while missing:
        first = next(iter(missing))
        found = list(itertools.islice(_with(first, axes, allowed, draw), CANDIDATES))
        if not found:
            del missing[first]
            continue
        best = max(found, key=lambda places: sum(pair in missing for pair in _pairs_of(_single(places))))
        for pair in _pairs_of(_single(best)):
            missing.pop(pair, None)
        rows.append(_named(best, axes))
    return rows


def _with(
    pair: Pair, axes: Mapping[str, Sequence[Any]], allowed: Allowed | None, draw: random.Random
) -> Iterator[dict[str, int]]:
    """Draw combinations that have a pair, as places of values."""
    one, first, other, second = pair
    for _ in range(TRIES):
        places = {name: draw.randrange(len(values)) for name, values in axes.items()} | {one: first, other: second}
        if allowed is None or allowed(_named(places, axes)):
            yield places


def _pairs_of(places: Mapping[str, Sequence[int]]) -> Iterator[Pair]:
    for one, other in itertools.combinations(places, 2):
        for first, second in itertools.product(places[one], places[other]):
            yield one, first, other, second


def _single(places: Mapping[str, int]) -> dict[str, Sequence[int]]:
    return {name: (place,) for name, place in places.items()}


def _named(places: Mapping[str, int], axes: Mapping[str, Sequence[Any]]) -> Row:
    return {name: axes[name][place] for name, place in places.items()}


def _parametrized(rows: list[Row], names: list[str], into: str | None) -> pytest.MarkDecorator:
    ids = ["-".join(filter(None, (short(name, row[name]) for name in names))) or "none" for row in rows]
    if into is not None:
        return pytest.mark.parametrize(into, rows, ids=ids)
    return pytest.mark.parametrize(names, [tuple(row[name] for name in names) for row in rows], ids=ids)


def short(name: str, value: Any) -> str:
    """Return a few letters for a value: its axis' name where it is True, nothing where it is False or None."""
    if value is None or isinstance(value, bool):
        return name if value else ""
    if isinstance(value, torch.dtype):
        return {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}[str(value).split(".")[1]]
    if isinstance(value, tuple):
        joined = ("x" if all(isinstance(v, int) for v in value) else "-").join(map(str, value)) or "scalar"
        return joined.replace("deepseek-v4", "v4")
    return value.replace(" ", "_") if isinstance(value, str) else f"{name}{value}"
