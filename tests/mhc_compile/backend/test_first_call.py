"""Without upgrade: the first compiled call creates the parameters, says so, and computes what the model computed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import FirstCallError, NotCompiledError
from tests.nets.small import (
    Net,
    PostBlock,
    Shared,
    Wrapper,
    compile_blocks,
    compiled,
    gradients,
    inputs,
    made,
    perturb,
    relative,
    same,
    snapshot,
    unchanged,
    upgraded,
)

CREATED = r"created the parameters of 4 hyper-connections.*optimizer built before.*param_groups"
ours = pytest.mark.filterwarnings("ignore::mhc_compile.MHCWarning")


def test_first_call_equals_the_model_and_warns_once() -> None:
    model = made()
    expected = model(inputs())
    run = compiled(model, compiler="aot_eager")
    with pytest.warns(mhc.MHCWarning, match=CREATED) as caught:
        assert torch.equal(run(inputs()), expected)
    assert len([w for w in caught if issubclass(w.category, mhc.MHCWarning)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", mhc.MHCWarning)
        out = run(inputs())
        assert relative(out, expected) < 1e-5
        assert torch.equal(run(inputs()), out)


@ours
def test_second_call_trains_everything() -> None:
    model = made()
    run = compiled(model)
    run(inputs()).sum().backward()
    model.zero_grad()
    run(inputs()).sum().backward()
    names = [name for name, _ in mhc.named_parameters(model)]
    assert len(names) == 12
    assert all(parameter.grad is not None for parameter in model.parameters())
    for name, parameter in mhc.named_parameters(model):
        assert parameter.grad is not None
        assert name.endswith("alpha") or parameter.grad.abs().max() > 0, name  # alpha scales phi, which is 0


@pytest.mark.core(1)
@ours
@pytest.mark.parametrize("make", [Net, Shared, lambda: Net(2, PostBlock)], ids=["net", "shared", "post-norm"])
def test_equals_upgrade(make: Any, moved: bool) -> None:
    """The same names, places and start as from upgrade."""
    model, reference = made(make), upgraded(make)
    run = compiled(model)
    run(inputs())
    assert list(model.state_dict()) == list(reference.state_dict())
    for name, value in reference.state_dict().items():
        if not name.endswith("_extra_state"):
            assert torch.equal(model.state_dict()[name], value), name
    for each in (model, reference):
        perturb(each, 0.5 if moved else 0.0)
    assert torch.equal(run(inputs()), compiled(reference)(inputs()))


@ours
def test_in_place_compile_and_options() -> None:
    model = made()
    expected = model(inputs())
    model.compile(backend="mhc", options={"compiler": "eager", "streams": 2})
    assert torch.equal(model(inputs()), expected)
    assert all(p.shape == (32, 8) for name, p in mhc.named_parameters(model) if name.endswith("phi"))
    assert relative(model(inputs()), expected) < 1e-5
    perturb(model)
    assert relative(model(inputs()), expected) > 1e-2


@ours
def test_never_plain_afterwards() -> None:
    model = made()
    compiled(model)(inputs())
    perturb(model)
    assert torch.equal(model(inputs()), compiled(model)(inputs()))
    with pytest.raises(NotCompiledError):
        torch.jit.trace(model, (inputs(),))


@ours
def test_checkpoint_of_a_first_call(moved: bool) -> None:
    model = made()
    run = compiled(model)
    run(inputs())
    perturb(model, 0.5 if moved else 0.0)
    again = made(seed=3)
    mhc.restore(again, model.state_dict())
    assert torch.equal(compiled(again)(inputs()), run(inputs()))


def test_a_function_of_two_models_has_nowhere_to_keep_parameters() -> None:
    first, second = made(), made(seed=1)
    before = snapshot(first)

    def step(x: Tensor) -> Any:
        return first(x) + second(x)

    with pytest.raises(FirstCallError, match=r"mhc_compile\.upgrade\(model, args\) first"):
        torch.compile(step, backend="mhc", options={"compiler": "eager"})(inputs())
    assert unchanged(first, before)


HELD = [made()]


def test_a_function_that_finds_its_model_elsewhere() -> None:
    before = snapshot(HELD[0])

    def step(x: Tensor) -> Any:
        return HELD[0](x).sum()

    with pytest.raises(FirstCallError, match=r"mhc_compile\.upgrade\(model, args\) first"):
        torch.compile(step, backend="mhc", options={"compiler": "eager"})(inputs())
    assert unchanged(HELD[0], before)


@ours
def test_a_function_of_one_model(moved: bool) -> None:
    model = made()
    expected = model(inputs())

    def step(x: Tensor) -> Any:
        return model(x) * 2

    run = torch.compile(step, backend="mhc", options={"compiler": "eager"})
    assert torch.equal(run(inputs()), 2 * expected)
    perturb(model, 0.5 if moved else 0.0)
    reference = upgraded(moved=moved)
    assert torch.equal(run(inputs()), 2 * compiled(reference)(inputs()))
    assert torch.equal(compiled(model)(inputs()), compiled(reference)(inputs()))


def test_a_function_around_an_upgraded_model(moved: bool) -> None:
    model = upgraded(moved=moved)
    expected = compiled(model)(inputs())

    def step(x: Tensor) -> Tensor:
        out: Tensor = model(x)
        return out * 2

    out = torch.compile(step, backend="mhc", options={"compiler": "eager"})(inputs())
    assert torch.equal(out, expected * 2)


class DistributedDataParallel(Wrapper):
    """Has the name of torch's wrapper, and needs no process group."""


def test_a_wrapped_model_is_refused() -> None:
    model = DistributedDataParallel(made())
    before = snapshot(model)
    with pytest.raises(FirstCallError, match=r"DistributedDataParallel.*before wrapping"):
        compiled(model)(inputs())
    assert unchanged(model, before)


@pytest.mark.parametrize("method", [False, True], ids=["torch.compile", "compile"])
def test_in_ddp(method: bool, tmp_path: Path) -> None:
    """Dynamo compiles the model inside the wrapper alone, whose parameters nobody would synchronise."""
    dist: Any = pytest.importorskip("torch.distributed")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        parallel, before = nn.parallel.DistributedDataParallel(model := made()), snapshot(model)
        if method:
            parallel.compile(backend="mhc", options={"compiler": "eager"})
        with pytest.raises(FirstCallError, match=r"DistributedDataParallel.*before wrapping"):
            (parallel if method else compiled(parallel))(inputs())
        assert unchanged(model, before)
    finally:
        dist.destroy_process_group()


def test_wrapped_after_upgrade(moved: bool) -> None:
    model = upgraded(moved=moved)
    expected = compiled(model)(inputs())
    torch._dynamo.reset()
    assert torch.equal(compiled(DistributedDataParallel(model))(inputs()), expected)


class Broken(Net):
    """A graph break in the middle of the model."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        torch._dynamo.graph_break()
        out: Tensor = self.head(self.blocks[1](x))
        return out


@ours
def test_graph_break(moved: bool) -> None:
    """Each graph is planned when it is seen, so the region ends at the break, where upgrade would have linked them."""
    model = made(Broken)
    expected = model(inputs())
    run = compiled(model)
    assert torch.equal(run(inputs()), expected)
    assert relative(run(inputs()), expected) < 1e-5
    perturb(model, 0.5 if moved else 0.0)
    report = mhc.upgrade(model)
    assert [region.sites for region in report.regions] == [2, 2]
    again = made(Broken, seed=3)
    mhc.restore(again, model.state_dict())
    assert torch.equal(run(inputs()), compiled(again)(inputs()))


def test_graph_break_after_upgrade(moved: bool) -> None:
    """A region goes on across the break: the streams are carried, whoever made the break."""
    model, whole = upgraded(Broken), upgraded()
    assert [region.sites for region in mhc.upgrade(model).regions] == [4]
    for each in (model, whole):
        perturb(each, 0.5 if moved else 0.0)
    out, expected = (compiled(each, kernels="reference")(inputs()) for each in (model, whole))
    assert torch.equal(out, expected)
    found, wanted = (gradients(o, m.parameters()) for o, m in ((out, model), (expected, whole)))
    assert same(found, wanted)


@ours
def test_first_call_without_gradients() -> None:
    model = made()
    expected = model(inputs())
    run = compiled(model)
    with torch.no_grad():
        assert torch.equal(run(inputs()), expected)
        assert relative(run(inputs()), expected) < 1e-5
    run(inputs()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@ours
def test_two_models_of_one_class() -> None:
    first, second = made(), made(seed=1)
    wanted = [first(inputs()), second(inputs())]
    runs = [compiled(first), compiled(second)]
    for _ in range(2):
        for run, expected in zip(runs, wanted, strict=True):
            assert relative(run(inputs()), expected) < 1e-5
    runs[0](inputs()).sum().backward()
    assert all(p.grad is not None for p in first.parameters())
    assert all(p.grad is None for p in second.parameters())
    assert len(list(mhc.named_parameters(second))) == 12


@ours
def test_optimizer_built_before() -> None:
    """Gradients that no optimizer takes are told once, at the second step."""
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    run = compiled(model)
    messages: list[str] = []
    for _ in range(4):
        optimizer.zero_grad()
        run(inputs()).sum().backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        messages += [str(w.message) for w in caught if issubclass(w.category, mhc.MHCWarning)]
    assert len(messages) == 1
    assert "12 mHC parameters have gradients but are in no optimizer's groups" in messages[0]
    assert "param_groups" in messages[0]


@ours
def test_twelve_blocks_of_one_class(moved: bool) -> None:
    """Compiled one by one without upgrade: each gets parameters of its own, past Dynamo's limit for one function."""
    model = made(Net, 12)
    expected = model(inputs())
    compile_blocks(model)
    assert torch.equal(model(inputs()), expected)
    assert len(list(mhc.named_parameters(model))) == 12 * 2 * 3
    perturb(model, 0.5 if moved else 0.0)
    out = model(inputs())
    assert (relative(out, expected) < 1e-5) is not moved
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
