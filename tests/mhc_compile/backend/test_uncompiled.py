"""A call that nobody compiled computes what compiled ones compute, whatever its sizes are and whoever calls."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import mhc_compile as mhc
from tests.nets.small import (
    Block,
    Net,
    Separate,
    Wrapper,
    compiled,
    gradient_error,
    gradients,
    inputs,
    made,
    perturb,
    relative,
    upgraded,
)


def forward(model: nn.Module) -> Callable[..., Any]:
    return model.forward


def inside(model: nn.Module) -> Callable[..., Any]:
    return Wrapper(model)


def itself(model: nn.Module) -> Callable[..., Any]:
    return model


@pytest.mark.core(1)
@pytest.mark.parametrize("call", [itself, forward, inside, copy.deepcopy])
def test_values_and_gradients(call: Callable[[nn.Module], Any], moved: bool) -> None:
    model = upgraded(moved=moved)
    expected = compiled(model)(inputs())
    called = call(model)
    owner = called if isinstance(called, nn.Module) else model
    out = called(inputs())
    assert relative(out, expected) < 1e-6
    grads = [gradients(out, owner.parameters()), gradients(expected, model.parameters())]
    assert gradient_error(*grads) < 1e-5


@pytest.mark.slow
def test_every_size(graphs: list[str]) -> None:
    """Sizes of the first call are fixed; from the second on code serves all."""
    model = upgraded(moved=True)
    graphs.clear()
    outs = [model(inputs(size, 3)) for size in range(2, 8)]
    assert graphs == ["eager"] * 2
    torch._dynamo.reset()
    for size, out in zip(range(2, 8), outs, strict=True):
        assert relative(out, compiled(model)(inputs(size, 3))) < 1e-6


def test_equal_blocks_share_code(graphs: list[str]) -> None:
    model, x = upgraded(Net, 6, moved=True), inputs()
    expected = compiled(model)(x)
    graphs.clear()
    x = model.get_submodule("stem")(x)
    for block in model.get_submodule("blocks").children():
        x = block(x)
    assert relative(model.get_submodule("head")(x), expected) < 1e-5
    assert len(graphs) == 1


def test_the_models_own_compiler(graphs: list[str]) -> None:
    model = upgraded(config=mhc.Config(compiler="aot_eager"), moved=True)
    graphs.clear()
    model(inputs())
    assert graphs == ["aot_eager"]


def test_modes() -> None:
    model = upgraded(moved=True)
    expected = model(inputs())
    with torch.no_grad():
        assert relative(model(inputs()), expected) < 1e-6
    with torch.inference_mode():
        assert relative(model(inputs()), expected) < 1e-6
    model.train()
    assert relative(model(inputs()), expected) < 1e-6
    assert relative(copy.deepcopy(model).double()(inputs().double()), expected) < 1e-5


def test_hooks_run_once() -> None:
    model, seen = upgraded(moved=True), []
    expected = model(inputs())
    model.register_forward_pre_hook(lambda *_: seen.append("before"))
    model.register_forward_hook(lambda *_: seen.append("after"))
    assert torch.equal(model(inputs()), expected)
    assert seen == ["before", "after"]


def test_training_moves_all_of_it() -> None:
    model = upgraded()
    before = {name: p.detach().clone() for name, p in mhc.named_parameters(model)}
    optimizer = torch.optim.AdamW(mhc.param_groups(model, lr=1e-2, weight_decay=0.1))
    for _ in range(3):
        optimizer.zero_grad()
        model(inputs()).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in mhc.named_parameters(model))


def test_while_another_thread_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compiler.is_compiling() is true in every thread then."""
    model = upgraded(moved=True)
    expected = compiled(model)(inputs())
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert torch.compiler.is_compiling()
    assert relative(model(inputs()), expected) < 1e-6


def test_through_breaks(moved: bool) -> None:
    model = upgraded(Separate, 3, moved=moved)
    assert relative(model(inputs()), compiled(model)(inputs())) < 1e-6


class Calls(Block):
    """Runs its own code when it is called, not its forward."""

    def __call__(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def test_owners_with_a_call_of_their_own(moved: bool) -> None:
    model = upgraded(Net, 2, Calls, moved=moved)
    assert relative(model(inputs()), compiled(model)(inputs())) < 1e-6
    x = torch.randn(2, 16)
    block = model.get_submodule("blocks.0")
    assert relative(block(x), torch.compile(lambda y: block(y), backend="mhc", options={"compiler": "eager"})(x)) < 1e-6


def test_a_first_call_makes_a_model_that_runs_itself() -> None:
    model = made()
    with pytest.warns(mhc.MHCWarning, match="created the parameters"):
        compiled(model)(inputs())
    perturb(model)
    assert torch.equal(model(inputs()), compiled(model)(inputs()))


def test_nothing_keeps_the_model() -> None:
    model = upgraded()
    model(inputs())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# -- under modes of the user's ----------------------------------------------------------------------------------------


class Seen(TorchDispatchMode):
    """Notes the ops that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it so
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.core(1)
@pytest.mark.parametrize("way", [itself, compiled, lambda model: Apart(model)], ids=["itself", "compiled", "apart"])
def test_a_dispatch_mode_sees_the_rewritten_graph(way: Callable[[nn.Module], Any]) -> None:
    """Dynamo compiles nothing under one."""
    model = upgraded(moved=True)
    expected = compiled(model)(inputs())
    run = way(model)
    with Seen() as mode:
        out = run(inputs())
    assert relative(out, expected) < 1e-6
    assert (seams := mode.ops.count("mhc.seam.default")) >= 2  # one more between blocks that are in one graph
    assert relative(run(inputs()), expected) < 1e-6
    assert mode.ops.count("mhc.seam.default") == seams


class Apart(nn.Module):
    """Runs a model block by block, in a frame that breaks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, x: Tensor) -> Tensor:
        x = self.model.stem(x)
        for block in self.model.blocks:
            x = block(x)
            torch._dynamo.graph_break()
        out: Tensor = self.model.head(x)
        return out


@pytest.mark.core(1)
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_flops(kernels: str) -> None:
    """Forward and backward: what is added are the products of each site's streams with phi, whoever computes them."""
    model, x = made(), inputs()
    with FlopCounterMode(display=False) as plain:
        model(x).square().sum().backward()
    mhc.upgrade(model, (x,), config=mhc.Config(streams=3, kernels=kernels))
    perturb(model)
    with FlopCounterMode(display=False) as counter:
        model(x).square().sum().backward()
    tokens, channels, streams, sites = x[..., 0].numel(), 16, 3, 4
    product = 2 * tokens * streams * channels * (streams * streams + 2 * streams)
    assert counter.get_total_flops() - plain.get_total_flops() == 3 * sites * product
    assert torch.nn.modules.module._global_forward_hooks == {}
