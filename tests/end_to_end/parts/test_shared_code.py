"""Equal layers that are compiled one by one share one graph, wherever their regions start."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import CarryError
from tests.nets.small import (
    Block,
    Net,
    PostBlock,
    compile_blocks,
    compiled,
    gradient_error,
    gradients,
    inputs,
    relative,
    upgraded,
)

SPLITS: dict[str, tuple[str, ...]] = {"one": (), "two": ("blocks.1.*",), "three": ("blocks.1.*", "blocks.2.*")}


class Pair(nn.Module):
    """Two blocks, which are compiled together."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.one, self.two = Block(dropout=dropout), Block(dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x))
        return out


def split(*globs: str, block: Callable[..., nn.Module] = Block) -> nn.Module:
    """Three blocks, moved from their start, with a region in front of each that a glob names."""
    return upgraded(Net, 3, block, moved=True, config=mhc.Config(split=globs, kernels="reference"))


def results(run: Callable[[Tensor], Tensor], model: nn.Module) -> Sequence[Tensor | None]:
    out = run(inputs().to(next(model.parameters())))
    return [out, *gradients(out, model.parameters())]


def whole(model: nn.Module) -> Sequence[Tensor | None]:
    """The output and every gradient in fp64, compiled as a whole."""
    exact = copy.deepcopy(model).double()
    found = results(compiled(exact), exact)
    torch._dynamo.reset()
    return found


def graphs() -> int:
    count: int = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return count


@pytest.mark.core(1)
@pytest.mark.parametrize("block", [Block, PostBlock])
@pytest.mark.parametrize("order", [("one", "two", "three"), ("three", "two", "one")], ids="-".join)
def test_blocks_of_models_whose_regions_start_elsewhere(order: Sequence[str], block: Callable[..., nn.Module]) -> None:
    models = [split(*SPLITS[name], block=block) for name in order]
    expected = [whole(model) for model in models]
    torch._dynamo.utils.counters.clear()
    for model, wanted in zip(models, expected, strict=True):
        compile_blocks(model)
        assert gradient_error(results(model, model), wanted) < 1e-5
    assert graphs() == 1
    first, second, _ = (wanted[0] for wanted in expected)
    assert first is not None
    assert second is not None
    assert relative(first, second) > 1e-3


@pytest.mark.slow
def test_a_region_that_starts_inside_has_a_graph_of_its_own() -> None:
    """What lies between the parts' ends is decided when they are compiled."""
    models = [
        upgraded(Net, 2, Pair, moved=True, config=mhc.Config(split=globs, kernels="reference"))
        for globs in ((), ("*.two.*",))
    ]
    expected = [whole(model) for model in models]
    torch._dynamo.utils.counters.clear()
    for number, (model, wanted) in enumerate(zip(models, expected, strict=True), start=1):
        compile_blocks(model)
        assert gradient_error(results(model, model), wanted) < 1e-5
        assert graphs() == number


@pytest.mark.slow
def test_whole_models_do_not_share_code_where_their_regions_differ() -> None:
    models = [split(*globs) for globs in SPLITS.values()]
    expected = [whole(model) for model in models]
    for model, wanted in zip(models, expected, strict=True):
        assert gradient_error(results(compiled(model), model), wanted) < 1e-5


def test_hooks_in_front_of_the_first_block_see_the_plain_gradient() -> None:
    model: Any = split()
    alike = copy.deepcopy(model)
    seen: list[Tensor] = []

    def watch(_: nn.Module, __: Any, out: Tensor) -> None:
        out.register_hook(lambda gradient: seen.append(gradient))

    for each in (model, alike):
        each.stem.register_forward_hook(watch)
    compile_blocks(model)
    for each in (model, alike):
        results(each, each)  # the second is not compiled: the backend runs it as a whole
    assert relative(*seen) < 1e-5


@pytest.mark.core(1)
@pytest.mark.parametrize("mode", ["enable_grad", "no_grad", "inference_mode"])
def test_the_first_block_takes_no_streams_of_its_model(mode: str) -> None:
    model: Any = split()
    compile_blocks(model)
    with getattr(torch, mode)():
        x = model.blocks[0](model.stem(inputs()))
        with pytest.raises(CarryError, match=r"site 'blocks\.0\.attn' starts streams, but its input carries those of"):
            model.blocks[0](x)
        assert model.blocks[0](x.clone()).shape == x.shape


@pytest.mark.core(1)
@pytest.mark.parametrize("shape", [(0, 5, 8), (1, 1, 8), (3, 7, 8)], ids=str)
def test_sizes(shape: tuple[int, ...]) -> None:
    model = split("blocks.2.*")
    alike = copy.deepcopy(model)
    compile_blocks(model)
    for x in (torch.randn(shape), torch.randn(shape[1], shape[0], shape[2]).transpose(0, 1)):
        out, expected = model(x), compiled(alike)(x)
        assert out.shape == expected.shape
        torch.testing.assert_close(out, expected)
