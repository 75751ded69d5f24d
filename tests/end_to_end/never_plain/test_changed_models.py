"""Upgraded models that are changed afterwards: layers, forwards, wrappers. Right, or an error that says so."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import MHCError, SiteNotFoundError
from tests.end_to_end.never_plain.paths import Block, Deep, moved, x
from tests.nets.small import Wrapper, agree, compiled, relative, results


def faster(self: Any, x: Tensor) -> Tensor:
    return self.f(self.f(x)).tanh() + x


@pytest.mark.parametrize("which", [(0, 1, 2, 3), (1,)], ids=["all", "one"])
def test_a_forward_that_is_replaced_on_the_instance(which: tuple[int, ...]) -> None:
    model = moved(Deep())
    for i in which:
        layer = model.get_submodule(f"layers.{i}")
        layer.forward = types.MethodType(faster, layer)
    with pytest.raises(SiteNotFoundError, match=r"'layers\.\d\.a' .* its forward was replaced after the upgrade"):
        compiled(model)(x())
    with mhc.plain(model):
        compiled(model)(x())


CHANGES: dict[str, Callable[[nn.ModuleList], object]] = {
    "first gone": lambda layers: layers.pop(0),
    "last gone": lambda layers: layers.pop(3),
    "a plain one": lambda layers: layers.insert(1, Block()),
    "a plain one at the end": lambda layers: layers.append(Block()),
    "one again": lambda layers: layers.append(layers[1]),
    "a copy": lambda layers: layers.append(copy.deepcopy(layers[1])),
    "none in its place": lambda layers: layers.__setitem__(1, nn.Identity()),
    "another order": lambda layers: layers.append(layers.pop(1)),
}


@pytest.mark.core(2)
@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_are_added_or_taken_away(change: str) -> None:
    model = moved(Deep())
    layers = model.get_submodule("layers")
    assert isinstance(layers, nn.ModuleList)
    CHANGES[change](layers)
    with pytest.raises(MHCError, match=r"remove\(model\) and upgrade"):
        compiled(model)(x())


def test_wrappers_between_a_model_and_its_layers_are_no_change() -> None:
    model = moved(Deep())
    want = results(compiled(model), model, x())
    layers = model.get_submodule("layers")
    assert isinstance(layers, nn.ModuleList)
    layers[1] = Wrapper(layers[1])
    outer = Wrapper(model)
    assert agree(results(compiled(outer), outer, x()), want)


def test_a_wrapped_site_is_marked_through_its_wrapper() -> None:
    class Chosen(nn.Module):
        """As PEFT's `modules_to_save`: shows a copy of what it wraps, and trains that."""

        def __init__(self, site: nn.Module) -> None:
            super().__init__()
            self.original_module, self.active = site, copy.deepcopy(site)

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self._modules["active"], name)

    model = moved(Deep(2))
    expected = compiled(model)(x())
    held = model.get_submodule("layers.1.mhc")
    held.f = Chosen(held.get_submodule("f"))
    torch._dynamo.reset()
    out = compiled(model)(x())
    assert relative(out, expected) < 1e-6
    out.mul(x()).sum().backward()
    assert held.get_parameter("f.active.phi").grad is not None
    assert held.get_parameter("f.original_module.phi").grad is None
    held.f = nn.Sequential(held.get_submodule("f.active"))
    torch._dynamo.reset()
    with pytest.raises((MHCError, AttributeError)):
        compiled(model)(x())
