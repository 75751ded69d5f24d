"""The model's parameters and its hyper-connections' frozen, tied, or swapped for others during a call.

mHC parameters are away from their start in every test, and upstream gradients are random.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import mhc_compile as mhc
from tests.nets.small import (
    Net,
    afresh,
    agree,
    compiled,
    gradient_error,
    gradients,
    inputs,
    made,
    perturb,
    relative,
    results,
    upgraded,
)

FROZEN: dict[str, Callable[[str], bool]] = {
    "the model's": lambda name: "mhc" not in name,
    "mhc's": lambda name: "mhc" in name,
    "phi": lambda name: name.endswith("phi"),
    "all but phi": lambda name: not name.endswith("phi"),
    "the first block": lambda name: name.startswith(("stem", "blocks.0")),
}


@pytest.mark.core(1)
@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN.keys())
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_frozen_parameters(frozen: Callable[[str], bool], late: bool) -> None:
    """The others get the gradients that they get when nothing is frozen; `late`: frozen when compiled already."""
    model = upgraded(moved=True)
    expected = afresh(model, inputs())
    torch._dynamo.reset()
    run = compiled(model, compiler="aot_eager")
    if late:
        results(run, model, inputs())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen(name))
    out, found = results(run, model, inputs())
    kept = [True, *(not frozen(name) for name, _ in model.named_parameters())]
    assert [grad is not None for grad in found] == kept
    assert agree((out, found), (expected[0], [g if keep else None for g, keep in zip(expected[1], kept, strict=True)]))


def tie(model: nn.Module) -> nn.Module:
    """Let two blocks share a weight, as embeddings and heads do."""
    first, second = (model.get_submodule(f"blocks.{i}.attn") for i in range(2))
    second.weight = first.weight
    return model


@pytest.mark.core(1)
@pytest.mark.parametrize("when", ["before", "after"])
def test_tied_weights(when: str) -> None:
    """A tied weight gets the sum of the gradients of its places."""
    apart = upgraded(moved=True)
    apart.get_submodule("blocks.1.attn").load_state_dict(
        {**apart.get_submodule("blocks.1.attn").state_dict(), "weight": apart.get_parameter("blocks.0.attn.weight")}
    )
    expected_out, grads = afresh(apart, inputs())
    expected = dict(zip([n for n, _ in apart.named_parameters()], grads[1:], strict=True))
    if when == "before":
        tied = tie(made())
        mhc.upgrade(tied, (inputs(),))
        perturb(tied)
    else:
        tied = tie(upgraded(moved=True))
    tied.load_state_dict(apart.state_dict())
    torch._dynamo.reset()
    out, found = results(compiled(tied, compiler="aot_eager"), tied, inputs())
    first, second = (expected.pop(f"blocks.{i}.attn.weight") for i in range(2))
    assert first is not None
    assert second is not None
    expected["blocks.0.attn.weight"] = first + second
    names = [name for name, _ in tied.named_parameters()]
    assert agree((out, found[1:]), (expected_out, [expected[name] for name in names]))


# -- functional_call --------------------------------------------------------------------------------------------------


def replacements(model: nn.Module) -> dict[str, Tensor]:
    """Other values for the mHC parameters, tensors that are no parameters of any module."""
    other = copy.deepcopy(model)
    perturb(other, seed=9)
    return {name: p.detach().clone().requires_grad_() for name, p in mhc.named_parameters(other)}


@pytest.mark.core(1)
@pytest.mark.parametrize("inside", [False, True], ids=["compiled model", "compiled call"])
@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
def test_functional_call_uses_what_it_is_given(inside: bool, warm: bool) -> None:
    model = upgraded(moved=True)
    given = replacements(model)
    reference = copy.deepcopy(model)
    reference.load_state_dict({**model.state_dict(), **given})
    expected = compiled(reference)(inputs())
    grads = gradients(expected, [p for _, p in mhc.named_parameters(reference)])
    torch._dynamo.reset()

    def call(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(model, parameters, (x,))
        return out

    options: Any = {"backend": "mhc", "options": {"compiler": "aot_eager"}}
    if inside:
        run = torch.compile(call, **options)
    else:
        model.compile(**options)
        run = call
    own = model(inputs()) if warm and not inside else None
    out = run(given, inputs())
    assert relative(out, expected) < 1e-5
    assert gradient_error(gradients(out, given.values()), grads) < 1e-5
    if own is not None:
        assert torch.equal(model(inputs()), own)
        assert not torch.equal(own, out)


@pytest.mark.slow
def test_functional_call_uncompiled() -> None:
    model = upgraded(moved=True)
    given = replacements(model)
    expected = functional_call(
        compiled(model), {f"_orig_mod.{name}": value for name, value in given.items()}, (inputs(),)
    )
    assert torch.equal(functional_call(model, given, (inputs(),)), expected)
    assert not torch.equal(model(inputs()), expected)


class FrozenStem(Net):
    """The trunk starts in no_grad."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_every_site_behind_a_frozen_stem_is_trained(compiler: str) -> None:
    torch._dynamo.reset()
    model = upgraded(FrozenStem, moved=True)
    out = compiled(model, compiler=compiler)(inputs())
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(3)))
    found = {name: parameter.grad for name, parameter in mhc.named_parameters(model)}
    assert found
    assert all(grad is not None and grad.abs().max() > 0 for grad in found.values()), found
    assert all(parameter.grad is None for parameter in model.get_submodule("stem").parameters())
