"""What crosses boundaries, with all stages in this process and mHC parameters away from their start."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import CarryError
from tests.end_to_end.distributed.staged import Staged, connected, parts
from tests.nets.small import (
    WIDTH,
    PostBlock,
    afresh,
    agree,
    compiled,
    gradients,
    inputs,
    relative,
    results,
    same,
    upgraded,
)

N = 4
AOT: dict[str, Any] = {"compiler": "aot_eager"}
BITWISE = mhc.Config(kernels="reference")  # kernels fuse other neighbours where a graph ends


def run(stages: dict[int, nn.Module], x: Tensor) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The output, and the shapes that crossed."""
    shapes = []
    for stage in stages.values():
        x = stage(x)
        shapes.append(tuple(x.shape))
    return x, shapes[:-1]


def gradients_of(stages: dict[int, nn.Module], x: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    named = {name: p for stage in stages.values() for name, p in stage.named_parameters()}
    out, _ = run(stages, x)
    return out, dict(zip(named, gradients(out, named.values()), strict=True))


@pytest.mark.core(1)
@pytest.mark.parametrize("block", [None, PostBlock], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (1, 1, 2)], ids=["even", "uneven", "three"])
def test_stages_are_the_model(block: Any, sizes: tuple[int, ...]) -> None:
    """Outputs and every gradient, bit for bit; behind a norm the hidden states go along with the streams."""
    model = upgraded(Staged, 4, **({} if block is None else {"block": block}), moved=True, config=BITWISE)
    x = inputs(3, 5)
    expected, wanted = results(compiled(model), model, x)
    stages = connected(model, sizes)
    out, found = gradients_of(stages, x)
    assert torch.equal(out, expected)
    for (name, _), want in zip(model.named_parameters(), wanted[1:], strict=True):
        assert same([found[name]], [want]), name
    rows = N if block is None else N + 1
    assert run(stages, x)[1] == [(3, 5, rows * WIDTH)] * (len(sizes) - 1)


@pytest.mark.core(1)
@pytest.mark.parametrize("how", ["blocks", "whole", "object", "inductor"])
def test_who_compiles_a_stage(how: str) -> None:
    """Its blocks, itself, an object around it, before or after."""
    model = upgraded(Staged, 2, moved=True, config=BITWISE)
    x = inputs(2, 3)
    expected = results(compiled(model), model, x)
    stages: dict[int, Any] = {**parts(model, (1, 1))}
    if how == "object":
        stages = {i: torch.compile(stage, backend="mhc", options=AOT) for i, stage in stages.items()}
    mhc.connect_stages(stages, 2)
    for stage in stages.values():
        if how == "blocks":
            for block in stage.blocks.children():
                block.compile(backend="mhc", options=AOT)
        elif how != "object":
            stage.compile(backend="mhc", options={"compiler": "inductor"} if how == "inductor" else AOT)
    out, found = gradients_of(stages, x)
    assert relative(out, expected[0]) < 1e-5
    found = {name.replace("_orig_mod.", ""): grad for name, grad in found.items()}
    for (name, _), want in zip(model.named_parameters(), expected[1][1:], strict=True):
        assert want is not None
        grad = found[name]
        assert grad is not None
        assert relative(grad, want) < 1e-4, name


def test_a_stage_keeps_its_names_and_survives_copies() -> None:
    model = upgraded(Staged, 2, moved=True, config=BITWISE)
    stages = connected(model, (1, 1))
    whole = model.state_dict()
    for stage in stages.values():
        assert type(stage).__name__ == "Staged"
        assert all(torch.equal(value, whole[name]) for name, value in stage.state_dict().items())
    file = io.BytesIO()
    torch.save(stages, file)
    file.seek(0)
    x = inputs(2, 3)
    expected = run(stages, x)[0]
    assert torch.equal(run(copy.deepcopy(stages), x)[0], expected)
    assert torch.equal(run(torch.load(file, weights_only=False), x)[0], expected)


def test_layers_may_be_numbered_anew_and_modules_be_the_users_own() -> None:
    """Slices of a list start from 0, a stage need be no copy of the model, and what cuts one may drop the plan."""

    class Listed(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.stem, self.layers = model.stem, nn.ModuleList([model.blocks["0"]])

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for layer in self.layers:
                x = layer(x)
            return x

    model: Any = upgraded(Staged, 2, moved=True, config=BITWISE)
    x = inputs(2, 3)
    expected = compiled(model)(x)
    stages = {0: Listed(copy.deepcopy(model)), 1: parts(model, (1, 1))[1]}
    last: Any = stages[1]
    last.blocks = nn.ModuleDict({"0": last.blocks["1"]})
    last.mhc = None
    mhc.connect_stages(stages, 2)
    assert torch.equal(run(stages, x)[0], expected)


def test_the_original_function_of_stages() -> None:
    model = upgraded(Staged, 2, moved=True, config=BITWISE)
    stages = connected(model, (1, 1))
    x = inputs(2, 3)
    with mhc.plain(model):
        expected = model(x)
    with mhc.plain(stages[0]), mhc.plain(stages[1]):
        out, shapes = run(stages, x)
    assert torch.equal(out, expected)
    assert shapes == [(2, 3, WIDTH)]
    for stage in stages.values():
        mhc.remove(stage, force=True)
    out, shapes = run(stages, x)
    assert torch.equal(out, expected)
    assert shapes == [(2, 3, WIDTH)]


def test_where_a_region_ends_hidden_states_cross() -> None:
    """Split there, or stages without any site: nothing is packed."""
    model = upgraded(Staged, 2, moved=True, config=mhc.Config(kernels="reference", split=("blocks.1.attn",)))
    x = inputs(2, 3)
    out, shapes = run(connected(model, (1, 1)), x)
    assert agree((out, []), (compiled(model)(x), []))
    assert shapes == [(2, 3, WIDTH)]
    model = upgraded(Staged, 2, moved=True, config=BITWISE)
    stages = connected(model, (0, 2, 0))
    own, phi, rest = (group["params"] for group in mhc.param_groups(stages[0], lr=0.1))
    assert [len(each) for each in (own, phi, rest)] == [2, 0, 0]
    mhc.shard_sites(stages[0])  # there is none
    out, shapes = run(stages, x)
    assert torch.equal(out, compiled(model)(x))
    assert shapes == [(2, 3, WIDTH)] * 2


@pytest.mark.slow
def test_no_gradients_and_other_sizes() -> None:
    model = upgraded(Staged, 2, moved=True, config=BITWISE)
    stages = connected(model, (1, 1))
    for shape in ((2, 3), (1, 7), (0, 3)):
        x = inputs(*shape)
        with torch.no_grad():
            assert torch.equal(run(stages, x)[0], afresh(model, x)[0])


def test_what_does_not_come_in_or_go_out() -> None:
    class Cloned(Staged):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return out if self.head is not None else out.clone()

    model = upgraded(Staged, 2, moved=True, config=BITWISE)
    stages = connected(model, (1, 1))
    with pytest.raises(
        CarryError, match=r"starts with site 'blocks\.1\.attn' got no tensor .* 4 x 16: .*'blocks\.0\.m"
    ):
        stages[1](torch.randn(2, 3, WIDTH))
    stages[0].register_forward_hook(lambda module, args, out: out.clone())
    with pytest.raises(CarryError, match=r"ends with site 'blocks\.0\.mlp' returns no tensor .* lie between two conn"):
        stages[0](inputs(2, 3))
