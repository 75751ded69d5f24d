"""Which module a node belongs to, and what its parts are called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from mhc_compile.capture.owners import Stack
from tests.nets.small import Net, inputs
from tests.nets.structures import graph


def owners(model: nn.Module, namer: Stack, *args: Tensor) -> dict[str, list[str]]:
    """Names of the adds and products of a model by their owner, in program order."""
    found: dict[str, list[str]] = {}
    for node in graph(model, *args).graph.nodes:
        if node.op == "call_function":
            found.setdefault(namer.owner(node), []).append(getattr(node.target, "__name__", ""))
    return found


def test_owners_are_paths_in_the_model() -> None:
    """The block adds, its parts compute; the model itself is "", and what no module of it made keeps its source."""
    model = Net(2)
    found = owners(model, Stack.of(model, model), inputs())
    assert list(found)[:4] == ["stem", "blocks.0.norm1", "blocks.0.attn", "blocks.0.dropout"]
    assert {owner: names.count("add") for owner, names in found.items() if "add" in names} == {
        "blocks.0": 2,
        "blocks.1": 2,
    }


def test_a_part_that_is_compiled_alone_has_its_path_in_the_model() -> None:
    model = Net(2)
    block = model.get_submodule("blocks.1")
    found = owners(block, Stack.of(model, block), torch.randn(3, 16))
    assert {owner for owner, names in found.items() if "add" in names} == {"blocks.1"}
    assert "blocks.1.attn" in found


def node(*path: str) -> fx.Node:
    made = fx.Graph().placeholder("x")
    made.meta["nn_module_stack"] = {f"k{i}": (f"L['self'].{step}", nn.Module) for i, step in enumerate(path)}
    return made


def test_without_a_model_sources_name_the_modules() -> None:
    assert Stack().owner(node("layers.0", "layers.0.attn")) == "layers.0.attn"
    assert Stack(root="encoder").owner(fx.Graph().placeholder("x")) == "encoder"


def test_the_child_is_the_first_step_from_the_owner() -> None:
    namer, deep = Stack(), node("layers.3", "layers.3.mlp", "layers.3.mlp.up")
    assert [namer.child(deep, owner) for owner in ("layers.3", "layers.3.mlp", "", "other")] == [
        "mlp", "up", "layers_3", None
    ]  # fmt: skip
    assert namer.child(node("layers.3", "layers.3.experts.1"), "layers.3") == "experts_1"


def test_a_module_under_two_names_has_one() -> None:
    """Whichever call comes first."""
    model: Any = nn.Module()
    model.first = model.second = nn.Linear(8, 8)
    model.forward = lambda x: model.second(model.first(x).sin())
    namer = Stack.of(model, model)
    assert namer.paths[id(model.second)] == "first"
    assert list(owners(model, namer, torch.randn(2, 8))) == ["first"]
