"""What a family is, and how one is written down in a line."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from bench.zoo import inputs

Sizes = Mapping[str, Any]
Parts = Mapping[str, int]
Call = tuple[tuple[Any, ...], dict[str, Any]]
LAYERS = 2  # of every stack, unless its family says otherwise


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture as a library builds it, a call of it, and its residual connections counted by hand.

    Attributes:
        library: the package it comes from.
        name: unique within the library.
        build: makes the model, tiny and with random weights.
        call: makes positional and keyword arguments.
        parts: residual connections of one forward by what the branch is, from the paper and the library's source.
        note: what a reader of the table should know.
        slack: how many connections may be missing or too many, with the reason in the note.
        still: how many parameters of mHC can have no gradient, with the reason in the note.
        streams: has several streams already, so that nothing may be rewritten, whatever is found.
        quick: belongs to the subset that runs in CI.
        mode: how it runs (see `modes`).
    """

    library: str
    name: str
    build: Callable[[], nn.Module]
    call: Callable[[], Call]
    parts: Parts
    note: str = ""
    slack: int = 0
    still: int = 0
    streams: bool = False
    quick: bool = False
    mode: str = "eval"

    @property
    def key(self) -> str:
        """Return "library/name"."""
        return f"{self.library}/{self.name}"

    @property
    def expected(self) -> int:
        """Number of residual connections of one forward."""
        return sum(self.parts.values())


def hf(name: str, model: str, sizes: Sizes, call: Callable[[], dict[str, Any]], parts: Parts, **about: Any) -> Family:
    """A model of `transformers`, named by its class and the values of its config."""

    def build() -> nn.Module:
        cls = getattr(importlib.import_module("transformers"), model)
        made: nn.Module = cls(cls.config_class(**sizes))
        return made

    return Family("transformers", name, build, lambda: ((), call()), parts, **about)


def lib(
    path: str,
    name: str,
    sizes: Sizes,
    call: Callable[[], Any],
    parts: Parts,
    *,
    args: tuple[Any, ...] = (),
    **about: Any,
) -> Family:
    """A model of another package: `path` is "module:Class", `call` gives a tensor, a tuple or keyword arguments."""
    module, _, cls = path.partition(":")

    def build() -> nn.Module:
        made: nn.Module = getattr(importlib.import_module(module), cls)(*args, **sizes)
        return made

    return Family(
        module.partition(".")[0].replace("_", "-"), name, build, lambda: inputs.as_call(call()), parts, **about
    )


def each(*names: str, layers: int = LAYERS) -> dict[str, int]:
    """One connection of each name in every layer."""
    return dict.fromkeys(names, layers)


def under(prefix: str, parts: Parts) -> dict[str, int]:
    """The same parts, of a part of the model."""
    return {f"{prefix} {name}": count for name, count in parts.items()}
