"""Cases of a test that has many axes: every two values of every two axes meet, though not every combination does."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from allpairspy import AllPairs

Combination = Mapping[str, Any]


def pairwise(
    allowed: Callable[[Combination], bool] | None = None, into: str | None = None, **axes: Sequence[Any]
) -> pytest.MarkDecorator:
    """Parametrize a test over axes, by the names of its parameters.

    Args:
        allowed: tells whether a combination exists; it may be asked about some of the axes only.
        into: the name of one parameter that takes all values, as a dictionary.
        axes: the values of each.
    """
    return _parametrized(pairs(allowed, **axes), list(axes), into)


def pairs(allowed: Callable[[Combination], bool] | None = None, **axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Return combinations in which every two values of every two axes meet."""
    names = sorted(axes, key=lambda name: -len(axes[name]))
    places = [list(range(len(axes[name]))) for name in names]  # values of equal worth, as 1 and True, are different

    def named(row: Sequence[int]) -> dict[str, Any]:
        return {name: axes[name][place] for name, place in zip(names, row, strict=False)}

    if len(names) == 1:
        return [named([place]) for place in places[0]]
    return [named(row) for row in AllPairs(places, filter_func=lambda row: allowed is None or allowed(named(row)))]


def sampled(count: int, into: str | None = None, **axes: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize a test over so many of all combinations, always the same ones."""
    draw = random.Random(0)
    return _parametrized([{name: draw.choice(axes[name]) for name in axes} for _ in range(count)], list(axes), into)


def _parametrized(rows: list[dict[str, Any]], names: list[str], into: str | None) -> pytest.MarkDecorator:
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
        return ("x" if all(isinstance(v, int) for v in value) else "-").join(map(str, value)) or "scalar"
    return str(value).replace(" ", "_") if isinstance(value, str) else f"{name}{value}"
