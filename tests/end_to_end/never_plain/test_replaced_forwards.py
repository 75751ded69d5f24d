"""Forwards that somebody put on instances before the upgrade: they run, mark their sites, and come back."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

import mhc_compile as mhc
from tests.nets.small import Block, Net, compiled, inputs, made, perturb, relative


def faster(self: Any, x: Tensor) -> Tensor:
    attended = self.attn(self.norm1(x))
    x = x + attended
    out: Tensor = self.mlp(self.norm2(x)) * 2 + x
    return out


class Faster(Block):
    forward = faster


def as_method(layer: Any) -> Callable[..., Any]:
    return types.MethodType(faster, layer)


def as_partial(layer: Any) -> Callable[..., Any]:
    return functools.partial(faster, layer)


def as_closure(layer: Any) -> Callable[..., Any]:
    return lambda x: faster(layer, x)


def with_replaced(how: Callable[[Any], Callable[..., Any]]) -> nn.Module:
    model = made(Net)
    for layer in model.get_submodule("blocks").children():
        layer.forward = how(layer)
    return model


@pytest.mark.core(1)
@pytest.mark.parametrize("how", [as_method, as_partial, as_closure])
def test_as_if_the_class_had_it(how: Callable[[Any], Callable[..., Any]]) -> None:
    model, same, x = with_replaced(how), made(Net, 2, Faster), inputs()
    given = [vars(module).get("forward") for module in model.modules()]
    plain = model(x)
    reports = [mhc.upgrade(each, (x,)) for each in (model, same)]
    assert [site.name for site in reports[0].sites] == [site.name for site in reports[1].sites]
    for each in (model, same):
        assert relative(each(x), plain) < 1e-6
        perturb(each)
    expected = compiled(same)(x)
    assert relative(expected, plain) > 1e-2
    for run in (model, compiled(model)):
        assert relative(run(x), expected) < 1e-6
    mhc.remove(model, force=True)
    assert [vars(module).get("forward") for module in model.modules()] == given
    assert relative(model(x), plain) == 0


def test_a_copy_runs_its_own() -> None:
    model, x = with_replaced(as_method), inputs()
    mhc.upgrade(model, (x,))
    perturb(model)
    expected = model(x)
    other = copy.deepcopy(model)
    mhc.reset_parameters(other)
    assert relative(other(x), expected) > 1e-2
    assert relative(model(x), expected) < 1e-6


def by_itself(forward: Callable[..., Any]) -> Callable[..., Any]:
    return forward


def by_twice(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: forward(x) * 2


@pytest.mark.core(2)
@pytest.mark.parametrize("by", [by_itself, by_twice])
@pytest.mark.parametrize("which", ["", "blocks.0", "blocks.0.mlp"], ids=["model", "owner", "branch"])
def test_around_what_the_class_has(which: str, by: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    model, x = made(Net), inputs()
    module = model.get_submodule(which)
    module.forward = by(module.forward)
    plain = model(x)
    assert len(mhc.upgrade(model, (x,)).sites) == 4
    assert relative(model(x), plain) < 1e-6
    perturb(model)
    assert relative(compiled(model)(x), plain) > 1e-2
    assert relative(model(x), compiled(model)(x)) < 1e-6


def test_at_a_first_call() -> None:
    model, x = with_replaced(as_method), inputs()
    run, plain = compiled(model), model(x)
    for _ in range(2):
        assert relative(run(x), plain) < 1e-6
    perturb(model)
    assert relative(run(x), plain) > 1e-2
