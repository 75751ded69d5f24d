"""Many modules of one class: own gradients, shared code, streams handed from block to block, copies."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.backend import mhc as backend
from mhc_compile.errors import CarryError, ConfigMismatchError, PlanMismatchError
from tests.nets.small import (
    Block,
    Net,
    PostBlock,
    compile_blocks,
    compiled,
    gradients,
    inputs,
    made,
    own_parameters,
    perturb,
    relative,
    same,
    snapshot,
    unchanged,
    upgraded,
)

blocks = pytest.mark.parametrize("block", [Block, PostBlock])
Make = Callable[..., nn.Module]
PLAINLY = {"kernels": "reference"}  # bit for bit: a kernel rounds otherwise than the ops that it is cut into


class Counter:
    """The backend, counting what it compiles."""

    def __init__(self) -> None:
        self.compilations = 0

    def __call__(self, gm: Any, example_inputs: Any, **kwargs: Any) -> Any:
        self.compilations += 1
        return backend(gm, example_inputs, **kwargs)


def test_two_instances_train_their_own_parameters(moved: bool) -> None:
    first, second = upgraded(moved=moved), made(seed=1)
    mhc.upgrade(second, (inputs(),))
    perturb(second, 0.3, seed=9)
    outs = [compiled(model)(inputs()) for model in (first, second)]
    outs[0].square().sum().backward()
    assert all(p.grad is not None for p in first.parameters())
    assert all(p.grad is None for p in second.parameters())
    outs[1].square().sum().backward()
    for model in (first, second):
        alone = copy.deepcopy(model)
        alone.zero_grad()
        torch._dynamo.reset()
        compiled(alone)(inputs()).square().sum().backward()
        assert same([p.grad for p in model.parameters()], [p.grad for p in alone.parameters()])


@pytest.mark.core(1)
@blocks
def test_many_blocks_equal_the_whole(block: Make, moved: bool) -> None:
    compiler = "aot_eager" if moved else "eager"
    whole = upgraded(Net, 3, block, moved=moved)
    parts = copy.deepcopy(whole)
    out = compiled(whole, compiler=compiler, **PLAINLY)(inputs())
    torch._dynamo.reset()
    counter = Counter()
    compile_blocks(parts, counter, compiler, **PLAINLY)
    x = parts(inputs())
    assert counter.compilations == 1  # the block with which streams start runs the code of the others
    assert torch.equal(x, out)
    found, expected = (gradients(o, m.parameters()) for o, m in ((x, parts), (out, whole)))
    assert all(grad is not None for grad in expected)
    assert same(found, expected)


@pytest.mark.core(1)
@blocks
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_blocks_without_gradients(block: Make, mode: str, moved: bool) -> None:
    whole = upgraded(Net, 3, block, moved=moved)
    parts = copy.deepcopy(whole)
    expected = compiled(whole, **PLAINLY)(inputs())
    compile_blocks(parts, **PLAINLY)
    with getattr(torch, mode)():
        assert torch.equal(parts(inputs()), expected)
        assert torch.equal(parts(inputs()), expected)
    assert torch.equal(parts(inputs()), expected)


def test_blocks_that_were_upgraded_and_then_compiled_by_blocks_equal_the_plain_model() -> None:
    expected = made(Net, 3)
    parts = upgraded(Net, 3)
    own = own_parameters(parts)
    compile_blocks(parts)
    out, reference = parts(inputs()), expected(inputs())
    assert relative(out, reference) < 1e-5
    for grad, wanted in zip(gradients(out, own.values()), gradients(reference, expected.parameters()), strict=True):
        assert grad is not None
        assert wanted is not None
        assert relative(grad, wanted) < 1e-5


class Between(Net):
    """Something happens to the tensor between two blocks."""

    change: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == 0 and self.change is not None:
                x = self.change(x)
        out: Tensor = self.head(x)
        return out


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": lambda x: x.clone(),
    "detach": lambda x: x.detach(),
    "view": lambda x: x.view(x.shape),
    "scaled": lambda x: x * 1.0,
    "in-place": lambda x: x.mul_(2.0),
    "in-place, on an alias": lambda x: (x.detach().zero_(), x)[1],
}


@pytest.mark.core(2)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("mode", ["enable_grad", "no_grad"])
def test_carry_must_arrive_intact(change: Callable[[Tensor], Tensor], mode: str) -> None:
    model = upgraded(Between, 3, moved=True)
    compile_blocks(model)
    model.change = change  # type: ignore[assignment]
    with getattr(torch, mode)(), pytest.raises(CarryError, match=r"Compile the whole model instead.*Config\(split="):
        model(inputs())


def test_a_block_alone_does_not_expand_quietly() -> None:
    model = upgraded(Net, 3, moved=True)
    compile_blocks(model)
    with pytest.raises(CarryError, match="its input has none"):
        model.get_submodule("blocks.1")(torch.randn(2, 5, 16))


def test_blocks_in_another_order() -> None:
    model = upgraded(Net, 3, moved=True)
    compile_blocks(model)
    order = model.get_submodule("blocks")
    x = order.get_submodule("0")(model.get_submodule("stem")(inputs()))
    with pytest.raises(CarryError):  # the first block starts streams, so it cannot continue any
        order.get_submodule("0")(x)


@pytest.mark.slow
def test_a_block_that_the_plan_leaves_out(moved: bool) -> None:
    """It runs as it is: its first compiled call does not give it parameters."""
    config = mhc.Config(exclude=("blocks.0.*",))
    model = upgraded(Net, 4, config=config, moved=moved)
    expected = compiled(model)(inputs())
    parts = copy.deepcopy(model)
    names = list(parts.state_dict())
    torch._dynamo.reset()
    compile_blocks(parts)
    with warnings.catch_warnings():
        warnings.simplefilter("error", mhc.MHCWarning)
        for _ in range(2):
            assert relative(parts(inputs()), expected) < 1e-5
    assert list(parts.state_dict()) == names


def test_blocks_that_nobody_compiled_join_in(moved: bool) -> None:
    model = upgraded(Net, 3, moved=moved)
    expected = compiled(model)(inputs())
    torch._dynamo.reset()
    model.get_submodule("blocks.0").compile(backend="mhc", options={"compiler": "eager"})
    x = model.get_submodule("stem")(inputs())
    for block in model.get_submodule("blocks").children():
        x = block(x)
    assert relative(model.get_submodule("head")(x), expected) < 1e-5


def test_streams_do_not_outlive_their_use() -> None:
    """The carry hangs on the tensor between two blocks, and goes with it."""
    model = upgraded(Net, 3)
    compile_blocks(model)
    with torch.no_grad():
        x = model.get_submodule("blocks.0")(model.get_submodule("stem")(inputs()))
    (carried,) = [value for name, value in vars(x).items() if "mhc" in name]
    streams = weakref.ref(carried.held)
    del carried
    assert streams() is not None
    del x
    gc.collect()
    assert streams() is None


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


@pytest.mark.core(1)
@pytest.mark.parametrize("duplicate", [*COPIES.values(), saved], ids=[*COPIES, "torch.save"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_copies_are_models_of_their_own(duplicate: Callable[[nn.Module], nn.Module], when: str, moved: bool) -> None:
    """Copied before or after the original was compiled."""
    model = upgraded(moved=moved)
    twin = duplicate(model) if when == "before" else model
    expected = compiled(model)(inputs())
    twin = twin if when == "before" else duplicate(model)
    assert type(twin.get_submodule("blocks.0")) is type(model.get_submodule("blocks.0"))
    out = compiled(twin)(inputs())
    assert torch.equal(out, expected)
    out.sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in twin.parameters())
    perturb(twin, 0.5, seed=3)
    assert torch.equal(compiled(model)(inputs()), expected)
    assert not torch.equal(compiled(twin)(inputs()), expected)
    assert torch.equal(twin(inputs()), compiled(twin)(inputs()))
    mhc.remove(twin, force=True)
    assert unchanged(twin, snapshot(made()))
    assert torch.equal(compiled(model)(inputs()), expected)


@pytest.mark.slow
def test_a_moving_average() -> None:
    """torch.optim.swa_utils deepcopies the model and averages all of its parameters."""
    model = upgraded()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    perturb(model)
    average.update_parameters(model)
    for (name, mine), (_, theirs) in zip(
        mhc.named_parameters(model), mhc.named_parameters(average.module), strict=True
    ):
        start = dict(mhc.named_parameters(upgraded()))[name] if name.endswith("alpha") else torch.zeros_like(mine)
        torch.testing.assert_close(theirs, (mine + start) / 2)
    out = compiled(average.module)(inputs())
    assert relative(out, compiled(model)(inputs())) > 1e-3


@pytest.mark.slow
def test_several_configs_in_one_process(moved: bool) -> None:
    """Same classes, same code objects: each model runs with what it was upgraded with."""
    configs = [
        mhc.Config(),
        mhc.Config(streams=2),
        mhc.Config(connection="hc"),
        mhc.Config(streams=3, sinkhorn_iters=5),
    ]
    models = [upgraded(moved=moved, config=config) for config in configs]
    plain = made()(inputs())
    alone = []
    for model in models:
        torch._dynamo.reset()
        alone.append(compiled(copy.deepcopy(model))(inputs()))
    torch._dynamo.reset()
    runs = [compiled(model) for model in models]
    for _ in range(2):
        for run, expected in zip(runs, alone, strict=True):
            out = run(inputs())
            assert torch.equal(out, expected)
            assert (relative(out, plain) < 1e-5) is not moved
    if moved:
        assert all(not torch.equal(a, b) for i, a in enumerate(alone) for b in alone[:i])


def test_blocks_of_several_configs_do_not_share_streams() -> None:
    two, four = (upgraded(Net, 2, config=mhc.Config(streams=n), moved=True) for n in (2, 4))
    compile_blocks(two)
    compile_blocks(four)
    x = two.get_submodule("blocks.0")(two.get_submodule("stem")(inputs()))
    with pytest.raises((CarryError, ConfigMismatchError, PlanMismatchError)):
        four.get_submodule("blocks.1")(x)
