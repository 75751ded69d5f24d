"""upgrade of models of other kinds: dtypes, meta device, frozen, already compiled, and configs that rewrite nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import mhc_compile as mhc
from mhc_compile.backend import kernels
from mhc_compile.errors import AlreadyUpgradedError, UnsupportedModelError
from tests.nets.small import (
    Net,
    compiled,
    gradient_error,
    gradients,
    inputs,
    made,
    mhc_state,
    perturb,
    relative,
    results,
    snapshot,
    unchanged,
    upgraded,
)


class Other(nn.Module):
    """Residual connections of numbers that streams cannot hold."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = nn.Parameter(torch.ones(4, 4).to(dtype), requires_grad=dtype.is_complex)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + x @ self.weight
        return x


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
@pytest.mark.filterwarnings("ignore::mhc_compile.MHCWarning")
def test_integer_and_complex_numbers_are_left_alone(dtype: torch.dtype) -> None:
    model, x = Other(dtype), torch.arange(8).reshape(2, 4).to(dtype)
    assert mhc.upgrade(model, (x,)).sites == ()
    assert torch.equal(compiled(model)(x), model(x))


@pytest.mark.core(1)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("when", ["before", "after"])
def test_parameters_stay_wide(dtype: torch.dtype, when: str, moved: bool) -> None:
    model = made()
    expected = copy.deepcopy(model).to(dtype)(inputs().to(dtype))
    if when == "before":
        model.to(dtype)
        mhc.upgrade(model, (inputs().to(dtype),))
    else:
        mhc.upgrade(model, (inputs(),))
        model.to(dtype)
    perturb(model, 0.5 if moved else 0.0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {value.dtype for name, value in mhc_state(model).items() if "_extra" not in name} == {wide}
    assert {p.dtype for n, p in model.named_parameters() if "mhc" not in n} == {dtype}
    out = compiled(model)(inputs().to(dtype))
    assert out.dtype == dtype
    if moved:
        assert not torch.equal(out, expected)
    elif dtype == torch.float64:
        assert relative(out, expected) < 1e-6  # the start is computed in fp32
    else:
        assert torch.equal(out, expected)


@pytest.mark.core(1)
@pytest.mark.parametrize("connection", ["mhc", "hc"])
def test_meta(connection: str) -> None:
    """Planned without memory; to_empty and reset_parameters then give what upgrading a real model gives."""
    config = mhc.Config(connection=connection, alpha="auto")
    with torch.device("meta"):
        model = Net(2)
    report = mhc.upgrade(model, (inputs(),), config=config)
    assert len(report.sites) == 4
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    mhc.reset_parameters(model)
    reference = upgraded(config=config)
    ours, theirs = mhc_state(model), mhc_state(reference)
    assert list(ours) == list(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    model.load_state_dict(reference.state_dict())
    assert torch.equal(compiled(model)(inputs()), compiled(reference)(inputs()))


class Caching(Net):
    """A net that returns what it remembers, on top of an empty cache, as transformers do."""

    def forward(self, x: Tensor) -> Any:
        kept = torch.tensor([], dtype=x.dtype, device=x.device)
        made = super().forward(x)
        return made, torch.cat([kept, made], dim=-2)


@pytest.mark.filterwarnings("error")
def test_meta_with_a_cache_says_nothing_of_kernels() -> None:
    """Torch makes no fake tensor of `torch.tensor(..., device="meta")`, on which Dynamo gives up elsewhere."""
    kernels.warn.cache_clear()
    with torch.device("meta"):
        model = Caching()
    assert len(mhc.upgrade(model, (inputs(),)).sites) == 4


def test_offloaded_weights_are_refused() -> None:
    """As accelerate leaves a model: weights on the meta device, and a hook that fetches them."""
    model = made().to("meta")
    vars(model.get_submodule("stem"))["_hf_hook"] = object()
    with pytest.raises(UnsupportedModelError, match=r"accelerate keeps weights .* load the model onto its devices"):
        mhc.upgrade(model, (inputs(),))


def lazily(model: nn.Module) -> nn.Module:
    compiled(model)(inputs())
    return model


def at_once(model: nn.Module) -> nn.Module:
    mhc.upgrade(model, (inputs(),))
    return model


def restored(model: nn.Module) -> nn.Module:
    mhc.restore(model, upgraded().state_dict())
    return model


@pytest.mark.core(1)
@pytest.mark.filterwarnings("ignore:mhc created")
@pytest.mark.parametrize("make", [lazily, at_once, restored])
def test_parameters_made_in_inference_mode_can_be_trained(make: Callable[[nn.Module], nn.Module]) -> None:
    """Some trainers validate once before they train, in inference mode."""
    plain = made()
    with torch.inference_mode():
        model = make(plain)
    perturb(model)
    run, reference = compiled(model, compiler="aot_eager"), upgraded(moved=True)
    found, expected = results(run, model, inputs()), results(compiled(reference), reference, inputs())
    assert relative(found[0], expected[0]) < 1e-5
    assert gradient_error(found[1], expected[1]) < 1e-4


def test_a_graph_rewritten_in_inference_mode_can_be_trained() -> None:
    graph = fx.symbolic_trace(made())
    with torch.inference_mode():
        rewritten = mhc.rewrite(graph, (inputs(),))
    assert not any(tensor.is_inference() for tensor in (*rewritten.parameters(), *rewritten.buffers()))
    results(rewritten, rewritten, inputs())


def test_frozen_model() -> None:
    """A frozen model can be tuned by its hyper-connections alone."""
    model = made().requires_grad_(False)
    mhc.upgrade(model, (inputs(),))
    compiled(model)(inputs()).sum().backward()
    assert all((p.grad is not None) is ("mhc" in name) for name, p in model.named_parameters())


@pytest.mark.parametrize("config", [mhc.Config(streams=1), mhc.Config(connection="residual")], ids=["n=1", "residual"])
def test_configs_that_rewrite_nothing(config: mhc.Config) -> None:
    model = made()
    before, expected = snapshot(model), model(inputs())
    mhc.upgrade(model, (inputs(),), config=config)
    assert unchanged(model, before)
    options = {"streams": config.streams, "connection": config.connection}
    assert torch.equal(compiled(model, **options)(inputs()), expected)


def test_what_torch_compile_returned(moved: bool) -> None:
    """Upgrading the compiled object is upgrading the model inside."""
    model, reference = made(), upgraded(moved=moved)
    run = compiled(model)
    assert mhc.explain(run, (inputs(),)).sites[0].name == "blocks.0.attn"
    mhc.upgrade(run, (inputs(),))
    perturb(model, 0.5 if moved else 0.0)
    assert list(model.state_dict()) == list(reference.state_dict())
    assert torch.equal(run(inputs()), compiled(reference)(inputs()))


class Outer(nn.Module):
    """Residual connections around a model with its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.last = Net(1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x)
        for _ in range(2):
            x = x + self.last(x)
        return x


@pytest.mark.parametrize(("first", "second"), [("net", ""), ("", "net")], ids=["part first", "whole first"])
def test_a_part_and_the_whole(first: str, second: str) -> None:
    """Upgraded twice, at two places: the second would replace what the first has trained."""
    model, x = made(Outer), inputs()
    mhc.upgrade(model.get_submodule(first), (x,))
    perturb(model)
    before = snapshot(model)
    with pytest.raises(AlreadyUpgradedError, match=r"holds mHC parameters already.*upgrade the whole model once"):
        mhc.upgrade(model.get_submodule(second), (x,))
    assert unchanged(model, before)


def test_model_that_was_compiled_before(moved: bool) -> None:
    """`model.compile()` before upgrade: the capture looks through it, and the next call sees the new parameters."""
    model = made()
    expected = model(inputs())
    model.compile(backend="mhc", options={"compiler": "eager"})
    mhc.upgrade(model, (inputs(),))
    perturb(model, 0.5 if moved else 0.0)
    assert (relative(model(inputs()), expected) < 1e-5) is not moved


class Watched(Net):
    """Lets gradients start at what its blocks get, as Hugging Face's `enable_input_require_grads` does."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x.requires_grad_(True)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_tensor_that_is_told_to_need_gradients(training: bool) -> None:
    model = upgraded(Watched, 1, moved=True)
    model.get_submodule("stem").requires_grad_(False)
    reference = upgraded(Net, 1, moved=True)
    with torch.set_grad_enabled(training):
        got, want = compiled(model)(inputs()), compiled(reference)(inputs())
    assert relative(got, want) < 1e-6
    if training:
        found = []
        for each, out in ((model, got), (reference, want)):
            later = [parameter for name, parameter in each.named_parameters() if not name.startswith("stem")]
            found.append(gradients(out, later))
        assert gradient_error(*found) < 1e-5
