"""compiled_forwards: forwards that a user compiles, on the instance or in the class, have their sites."""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.capture.compiled_forwards import as_written, compiled_as, is_compiled, is_compiled_on, original
from mhc_compile.errors import NotCompiledError
from tests.nets.small import Block, Net, compiled, inputs, made, perturb, relative

WITH: dict[str, Any] = {"backend": "mhc", "options": {"compiler": "eager"}}


class Decorated(Net):
    @torch.compile(**WITH)
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class DecoratedBlock(Block):
    @torch.compile(**WITH, dynamic=True)
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def on_the_instance() -> nn.Module:
    model = made(Net)
    model.forward = torch.compile(model.forward, **WITH, fullgraph=True)
    return model


WAYS = {"instance": on_the_instance, "class": Decorated, "blocks": lambda: Net(2, DecoratedBlock)}
every_way = pytest.mark.parametrize("way", WAYS)


def as_compiled_whole(model: nn.Module) -> nn.Module:
    """Return a plain model of the same numbers, upgraded, to be compiled in the usual way."""
    same = made(Net)
    mhc.restore(same, model.state_dict())
    return same


@pytest.mark.core(1)
@every_way
def test_first_call(way: str) -> None:
    """It runs as it is, exactly; from then on the model has its sites, and computes what it does compiled whole."""
    model, x = made(WAYS[way]), inputs()
    plain = made(Net)(x)
    with pytest.warns(mhc.MHCWarning, match="at this first call"):
        assert torch.equal(model(x), plain)
    assert len(dict(mhc.named_parameters(model))) > 4
    assert relative(model(x), plain) < 1e-6
    perturb(model)
    out, weights = model(x), torch.randn_like(plain)
    assert relative(out, plain) > 1e-2
    if way != "blocks":  # each is a model of its own, with its own plan
        same = as_compiled_whole(model)
        expected = compiled(same)(x)
        assert relative(out, expected) < 1e-6
        gradients = (torch.autograd.grad(y, list(m.parameters()), weights) for y, m in ((out, model), (expected, same)))
        assert all(relative(ours, theirs) < 1e-5 for ours, theirs in zip(*gradients, strict=True))


@pytest.mark.core(1)
@every_way
def test_upgraded(way: str) -> None:
    model, x = made(WAYS[way]), inputs()
    plain = made(Net)(x)
    assert len(mhc.explain(model, (x,)).sites) == len(mhc.upgrade(model, (x,)).sites) == 4
    assert relative(model(x), plain) < 1e-6
    perturb(model)
    expected = compiled(as_compiled_whole(model))(x)
    assert relative(expected, plain) > 1e-2
    for run in (model, compiled(model), copy.deepcopy(model) if way != "instance" else model):
        assert relative(run(x), expected) < 1e-6
    with mhc.plain(model):
        assert relative(model(x), plain) < 1e-6
    mhc.remove(model, force=True)
    assert relative(model(x), plain) < 1e-6
    mhc.upgrade(model, (x,))
    perturb(model)
    assert relative(model(x), plain) > 1e-2


def test_compiled_after_upgrade() -> None:
    model, x = made(Net), inputs()
    plain = model(x)
    mhc.upgrade(model, (x,))
    perturb(model)
    expected = compiled(model)(x)
    model.forward = torch.compile(model.forward, **WITH)
    assert relative(model(x), expected) < 1e-6
    mhc.remove(model, force=True)
    assert relative(model(x), plain) < 1e-6


def test_by_another_backend() -> None:
    model, x = made(Net), inputs()
    model.forward = torch.compile(model.forward, backend="eager")
    assert len(mhc.upgrade(model, (x,)).sites) == 4
    with pytest.raises(NotCompiledError):
        model(x)


def test_another_forward_put_over_a_compiled_one() -> None:
    """What the class compiles is not what runs, and nobody compiled what does."""
    model, x = made(WAYS["blocks"]), inputs()
    for layer in model.get_submodule("blocks").children():
        layer.forward = types.MethodType(Block.forward, layer)
    mhc.upgrade(model, (x,))
    perturb(model)
    assert not any(is_compiled(module.forward) for module in model.modules())
    assert relative(model(x), compiled(as_compiled_whole(model))(x)) < 1e-6


@every_way
def test_a_captured_run_leaves_them(way: str) -> None:
    model = made(WAYS[way])
    before = [(module, vars(module).get("forward")) for module in model.modules()]
    with as_written(model):
        assert all(original(module.forward) == module.forward for module in model.modules())
        assert relative(model(inputs()), made(Net)(inputs())) == 0
    assert [(module, vars(module).get("forward")) for module in model.modules()] == before


def test_what_is_compiled() -> None:
    model = made(Net)
    assert original(model.forward) == model.forward
    assert compiled_as(len, model.forward) is None
    assert not is_compiled_on(model)
    model.forward = model.forward
    assert not is_compiled_on(model)
    model.forward = torch.compile(Net().forward, **WITH)  # another's
    assert not is_compiled_on(model)
    off = torch.compiler.disable(model.forward)
    assert original(off) is off
