"""Which calls compile themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import mhc_compile as mhc
from mhc_compile.model.sites import OwnerSites
from mhc_compile.model.uncompiled import compiled, compiles_itself
from tests.nets.small import inputs, upgraded

MODULE = torch.nn.Linear(2, 2)
SITES = OwnerSites()


def asked(x: object) -> bool:
    return compiles_itself(MODULE, SITES, (x,))


def test_an_eager_call_does() -> None:
    assert asked(torch.ones(2))


def test_one_of_the_original_function_does_not() -> None:
    sites = OwnerSites()
    sites.disabled = True
    assert not compiles_itself(torch.nn.Linear(2, 2), sites, (torch.ones(2),))


def compiled_by_method(model: Any) -> None:
    model[0].compile(backend="eager")


def compiled_by_wrapper(model: Any) -> None:
    model[0] = torch.compile(model[0], backend="eager")


def compiled_by_forward(model: Any) -> None:
    model[0].forward = torch.compile(model[0].forward, backend="eager")


@pytest.mark.parametrize("change", [compiled_by_method, compiled_by_wrapper, compiled_by_forward])
def test_one_of_a_model_with_compiled_parts_does_not(change: Callable[[Any], None]) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert compiles_itself(model, OwnerSites(), ())
    change(model)
    assert not compiles_itself(model, OwnerSites(), ())
    assert compiles_itself(torch.nn.Linear(2, 2), OwnerSites(), ())


def test_one_that_is_being_captured_does_not() -> None:
    found = []

    def step(x: Tensor) -> Tensor:
        found.append(asked(x))
        return x.sin()

    torch.compile(step, backend="eager", fullgraph=True)(torch.ones(2))
    torch.jit.trace(step, torch.ones(2), check_trace=False)
    torch.vmap(step)(torch.ones(2))
    torch.func.jvp(step, (torch.ones(2),), (torch.ones(2),))
    fx.symbolic_trace(step)
    torch.export.export(Calls(step), (torch.ones(2),))
    assert found == [False] * 6


class Calls(torch.nn.Module):
    def __init__(self, step: object) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.step(x)  # type: ignore[operator]
        return out


def test_it_is_said_once() -> None:
    compiled.cache_clear()
    model = upgraded()
    with pytest.warns(mhc.MHCWarning, match=r"Net is upgraded and was called without torch\.compile.*model\.compile"):
        model(inputs())
    with warnings.catch_warnings():
        warnings.simplefilter("error", mhc.MHCWarning)
        model(inputs())
        upgraded()(inputs(2, 2))
