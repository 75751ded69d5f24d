"""What libraries put around models: looked through for the plan, and for the names of parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mhc_compile.api.wrappers import inner, is_planned, planned, shapes, shown_sites
from tests.nets.small import Wrapper, made, upgraded

pytestmark = pytest.mark.xdist_group("wrappers")  # what is made once is made by one worker


@pytest.fixture(scope="module")
def ready() -> nn.Module:
    return upgraded()


@pytest.fixture
def model(ready: nn.Module) -> nn.Module:
    return copy.deepcopy(ready)


class Adapted(nn.Module):
    """Wraps a layer as PEFT does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.lora_A = layer, nn.Linear(16, 2)


class Around(Wrapper):
    """Wraps a model as PEFT does."""

    peft_config: Any = None

    def get_base_model(self) -> nn.Module:
        return self.net


class Shown(nn.Module):
    """Wraps a module as PEFT does for what it saves: attributes are those of the copy that it trains."""

    def __init__(self, original: nn.Module, copy: nn.Module) -> None:
        super().__init__()
        self.original_module, self.copy = original, copy

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["copy"], name)


def test_models_are_found_inside() -> None:
    model = made()
    assert inner(model) is model
    assert inner(torch.compile(model)) is model  # type: ignore[arg-type]
    assert inner(Around(model)) is model
    assert inner(Around(torch.compile(model))) is model  # type: ignore[arg-type]
    assert inner(Wrapper(model)) is not model


def test_plans_are_found_inside(model: nn.Module) -> None:
    assert planned(Wrapper(model))[0] is model
    assert is_planned(model)
    assert not is_planned(made())


def test_what_runs_of_a_wrapped_site_is_shown(ready: nn.Module, model: nn.Module) -> None:
    plan = planned(model)[1]
    owner: Any = model.get_submodule("blocks.0")
    copied: Any = ready.get_submodule("blocks.0")
    owner._modules["mhc"] = Shown(owner.mhc, copied.mhc)
    root: Any = model
    root._modules["mhc"] = Shown(root.mhc, ready.get_submodule("mhc"))
    assert planned(model) == (model, plan)
    found = dict((site.name, shown) for site, shown in shown_sites(model, plan))  # noqa: C402  # reads as pairs
    assert found["blocks.0.attn"] is copied.mhc.attn
    assert found["blocks.1.attn"] is model.get_submodule("blocks.1.mhc.attn")


def test_shapes_have_the_names_of_the_plain_model(model: nn.Module) -> None:
    plan, plain = planned(model)[1], shapes(model, planned(model)[1])
    assert plain.keys() == {name for name, _ in made().named_parameters() if name.startswith("blocks.")}
    block: Any = model.get_submodule("blocks.0")
    block.attn = Adapted(block.attn)
    assert shapes(model, plan) == plain
    block.attn.base_layer.weight = nn.Parameter(torch.zeros(128, dtype=torch.uint8), requires_grad=False)  # packed
    assert shapes(model, plan) == {name: each for name, each in plain.items() if name != "blocks.0.attn.weight"}
