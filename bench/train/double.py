"""A model's own definition in float64: what it widens to float32 goes to float64 instead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.train.contenders import Entry, compile_options, is_ours
from bench.train.setup import Setup


class Double(TorchFunctionMode):
    """Reads float32, where a library asks for it, as float64: `.float()`, `.to(torch.float32)`, `dtype=`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call with float64 where float32 was named."""
        if func is Tensor.float:
            return args[0].double()
        return func(*map(_wide, args), **{name: _wide(value) for name, value in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


class Twin:
    """An uncompiled copy of a contender in float64, at its present parameters.

    Ours runs the reference functions, without kernels and without Inductor.
    """

    def __init__(self, one: Entry, setup: Setup) -> None:
        self.model = copy.deepcopy(one.model).double()
        self.own_mode = not is_ours(one.name)
        self.run: Any = self.model
        if is_ours(one.name):
            given = compile_options(one.name, setup)
            given["options"] |= {"kernels": "reference", "compiler": "eager"}
            self.run = torch.compile(self.model, **given)

    def __call__(self, **keywords: Any) -> Any:
        """Run the forward."""
        if not self.own_mode:
            return self.run(**keywords)
        with Double():
            return self.run(**keywords)
