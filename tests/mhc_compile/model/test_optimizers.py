from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from mhc_compile.config import Config
from mhc_compile.errors import MHCWarning, NotUpgradedError
from mhc_compile.model import optimizers
from mhc_compile.model.optimizers import named_parameters, param_groups, watch_optimizers
from mhc_compile.model.sites import OwnerSites, SiteModule
from mhc_compile.model.start_values import Place


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Forget models and optimizers of other tests."""
    optimizers._watched.clear()
    optimizers._steps.clear()
    optimizers._told_frozen.clear()
    yield
    optimizers._watched.clear()


def upgraded(*, head: bool = False, alpha: float | str = 0.01) -> nn.Sequential:
    """A model with two owners, each with two sites, as upgrade leaves it; with heads or without."""
    config = Config(streams=2, alpha=alpha)
    model = nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 5))
    for owner in (model[0], model[2]):
        sites = OwnerSites()
        for label in ("attn", "mlp"):
            sites.add(SiteModule(label, label, Place(0, 2), 5, config, entry=True, head=head))
        owner.add_module("mhc", sites)
    return model


def gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


def step(*others: Optimizer) -> list[str]:
    """Let each optimizer step; return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for optimizer in others:
            optimizer.step()
    return [str(w.message) for w in caught if issubclass(w.category, MHCWarning)]


def own(model: nn.Module) -> list[nn.Parameter]:
    mine = {id(p) for _, p in named_parameters(model)}
    return [p for p in model.parameters() if id(p) not in mine]


def ours(model: nn.Module) -> list[Tensor]:
    return [p for _, p in named_parameters(model)]


# -- groups -----------------------------------------------------------------------------------------------------------


def test_named_parameters_are_those_of_state_dict() -> None:
    model = upgraded()
    names = [name for name, _ in named_parameters(model)]
    assert names == [
        f"{i}.mhc.{label}.{part}" for i in (0, 2) for label in ("attn", "mlp") for part in ("phi", "alpha", "bias")
    ]
    assert all(dict(model.named_parameters())[name] is p for name, p in named_parameters(model))


def test_groups_cover_every_parameter_once() -> None:
    model = upgraded()
    groups = param_groups(model, lr=0.1, weight_decay=0.2)
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters()}
    AdamW(groups)


@pytest.mark.parametrize("head", [False, True], ids=["mean", "learned"])
def test_decay_and_learning_rates(head: bool) -> None:
    model = upgraded(head=head)
    settings = {
        id(p): (group["lr"], group["weight_decay"])
        for group in param_groups(model, lr=0.1, weight_decay=0.2, phi_lr_scale=0.5)
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        part = name.rpartition(".")[2].removeprefix("head_") if ".mhc." in name else "own"
        expected = {"own": (0.1, 0.2), "phi": (0.05, 0.2), "alpha": (0.1, 0.0), "bias": (0.1, 0.0)}[part]
        assert settings[id(parameter)] == pytest.approx(expected), name


def test_a_rate_of_their_own() -> None:
    groups = param_groups(upgraded(), lr=0.1, phi_lr_scale=0.5, mhc_lr=3.0)
    assert [group["lr"] for group in groups] == [0.1, 1.5, 3.0]
    assert [group["lr"] for group in param_groups(upgraded(), lr=0.1, mhc_lr=3.0)] == [0.1, 3.0, 3.0]


def test_by_default_phi_learns_as_much_faster_as_alpha_makes_it_smaller() -> None:
    assert [group["lr"] for group in param_groups(upgraded(), lr=0.1)] == pytest.approx([0.1, 10.0, 0.1])
    for given, scale in ((1.0, 1.0), (0.05, 20.0), ("auto", 1.0)):
        assert param_groups(upgraded(alpha=given), lr=0.1)[1]["lr"] == pytest.approx(0.1 * scale)


def test_nothing_decays_by_default() -> None:
    assert {group["weight_decay"] for group in param_groups(upgraded(), lr=0.1)} == {0.0}


def test_frozen_parameters_are_left_out() -> None:
    model = upgraded()
    frozen = [model[0].weight, *(p for name, p in named_parameters(model) if name.startswith("0."))]
    for parameter in frozen:
        assert isinstance(parameter, Tensor)
        parameter.requires_grad_(False)
    held = {id(p) for group in param_groups(model, lr=0.1) for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_tied_parameters_stand_in_one_group() -> None:
    model = upgraded()
    model[2].weight = model[0].weight
    held = [id(p) for group in param_groups(model, lr=0.1) for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))


def test_groups_of_a_plain_model_are_refused() -> None:
    with pytest.raises(NotUpgradedError, match=r"call mhc_compile\.upgrade\(model, args\) first"):
        param_groups(nn.Linear(2, 2), lr=0.1)


# -- the warning ------------------------------------------------------------------------------------------------------


def test_an_optimizer_that_leaves_mhc_out_warns_once() -> None:
    model = upgraded()
    watch_optimizers(model)
    optimizer = SGD(own(model), lr=0.1)
    gradients(model)
    found = [step(optimizer) for _ in range(4)]
    assert [len(each) for each in found] == [0, 1, 0, 0]
    assert found[1][0].startswith("12 mHC parameters have gradients but are in no optimizer's groups (such as 0.mhc.")
    assert "mhc_compile.param_groups(model, lr, weight_decay)" in found[1][0]


def test_one_optimizer_with_all_parameters_does_not_warn() -> None:
    model = upgraded()
    watch_optimizers(model)
    optimizer = AdamW(param_groups(model, lr=0.1))
    gradients(model)
    assert [step(optimizer) for _ in range(3)] == [[], [], []]


@pytest.mark.parametrize("mhc_first", [True, False])
def test_two_optimizers_that_share_the_parameters_do_not_warn(mhc_first: bool) -> None:
    model = upgraded()
    watch_optimizers(model)
    pair = [SGD(own(model), lr=0.1), AdamW(ours(model), lr=0.1)]
    gradients(model)
    assert [step(*(pair[::-1] if mhc_first else pair)) for _ in range(3)] == [[], [], []]


def test_two_optimizers_that_leave_some_out_warn_once() -> None:
    model = upgraded()
    watch_optimizers(model)
    pair = [SGD(own(model), lr=0.1), AdamW(ours(model)[:-1], lr=0.1)]
    gradients(model)
    found = [step(*pair) for _ in range(3)]
    assert [len(each) for each in found] == [0, 1, 0]
    assert found[1][0].startswith("1 mHC parameters have gradients")


def test_parameters_without_gradients_are_left_out_on_purpose() -> None:
    model = upgraded()
    watch_optimizers(model)
    optimizer = SGD(own(model), lr=0.1)
    gradients(model)
    for parameter in ours(model):
        parameter.grad = None
    assert [step(optimizer) for _ in range(3)] == [[], [], []]


def test_optimizers_of_other_models_say_nothing() -> None:
    model, other = upgraded(), nn.Linear(3, 3)
    watch_optimizers(model)
    gradients(model)
    gradients(other)
    optimizer: Any = SGD(other.parameters(), lr=0.1)
    assert [step(optimizer) for _ in range(3)] == [[], [], []]
    late = SGD(own(model), lr=0.1)
    assert [len(step(late)) for _ in range(3)] == [0, 1, 0]


def test_watching_keeps_no_model_alive() -> None:
    model = upgraded()
    watch_optimizers(model)
    del model
    assert len(optimizers._watched) == 0


def test_gates_that_decay_are_told_of_once() -> None:
    model = upgraded()
    watch_optimizers(model)
    optimizer = AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    gradients(model)
    found = [step(optimizer) for _ in range(3)]
    assert [len(each) for each in found] == [0, 1, 0]
    assert found[1][0].startswith("weight decay pulls 4 gates of mHC to 0 (such as 0.mhc.attn.alpha)")
    assert "mhc_compile.integrations.MHCTrainer" in found[1][0]


def test_frozen_sites_are_told_of_once() -> None:
    model = upgraded()
    watch_optimizers(model)
    for _, parameter in named_parameters(model):
        parameter.requires_grad_(False)
    optimizer = SGD(own(model), lr=0.1)
    gradients(model)
    found = [step(optimizer) for _ in range(3)]
    assert [len(each) for each in found] == [0, 1, 0]
    assert found[1][0].startswith("all mHC parameters of 4 hyper-connections are frozen")


def test_a_model_that_is_frozen_whole_is_no_warning() -> None:
    model = upgraded()
    model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        param_groups(model, lr=0.1)
