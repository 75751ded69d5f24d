"""upgrade: creates the parameters once, verifies, and leaves the model as it was where anything goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import CaptureError, ConfigMismatchError, MHCWarning, NameTakenError, VerificationError
from mhc_compile.model import owners, start_values
from tests.nets.small import (
    Block,
    Net,
    Plain,
    Shared,
    compiled,
    inputs,
    made,
    mhc_state,
    perturb,
    relative,
    snapshot,
    unchanged,
    upgraded,
)


def test_report() -> None:
    model = made()
    report = mhc.upgrade(model, (inputs(),))
    assert [site.name for site in report.sites] == ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
    assert [(site.k, site.length, site.predecessor) for site in report.sites] == [
        (0, 4, None), (1, 4, "blocks.0.attn"), (2, 4, "blocks.0.mlp"), (3, 4, "blocks.1.attn"),
    ]  # fmt: skip
    assert report.max_error is not None
    assert report.max_error < 1e-5
    assert report.parameters == sum(parameter.numel() for _, parameter in mhc.named_parameters(model))


def test_shared_layers_have_parameters_for_every_call() -> None:
    model = upgraded(Shared)
    report = mhc.upgrade(model, (inputs(),))
    assert len(report.sites) == 6
    assert len({site.name for site in report.sites}) == 6
    assert {site.owner for site in report.sites} == {"block"}
    assert len(list(mhc.named_parameters(model))) == 18


def test_again_changes_nothing() -> None:
    model = made()
    first = mhc.upgrade(model, (inputs(),), config=mhc.Config(streams=2))
    perturb(model)
    before, held = snapshot(model), dict(model.named_parameters())
    for config in (None, mhc.Config(streams=2)):
        assert mhc.upgrade(model, (inputs(),), config=config).sites == first.sites
    assert unchanged(model, before)
    assert mhc.upgrade(model, (inputs(),), config=mhc.Config(streams=2, compiler="eager")).sites == first.sites
    before[0]["mhc._extra_state"] = model.state_dict()["mhc._extra_state"]  # the plan, which keeps the option
    assert unchanged(model, before)
    assert all(held[name] is parameter for name, parameter in model.named_parameters())


def test_other_config_is_refused() -> None:
    model = upgraded(moved=True)
    before = snapshot(model)
    with pytest.raises(ConfigMismatchError, match=r"connection, streams; remove\(model\) first"):
        mhc.upgrade(model, (inputs(),), config=mhc.Config(streams=2, connection="hc"))
    assert unchanged(model, before)


def test_other_options_are_refused() -> None:
    model = upgraded(moved=True)
    before = snapshot(model)
    with pytest.raises(ConfigMismatchError, match=r"streams=2 \(the model has 4\).*remove\(model\)"):
        compiled(model, streams=2)(inputs())
    assert unchanged(model, before)
    torch.testing.assert_close(compiled(model, streams=4)(inputs()), compiled(model)(inputs()), rtol=0, atol=0)


def test_remove_and_upgrade_with_others() -> None:
    model = upgraded()
    mhc.remove(model)
    mhc.upgrade(model, (inputs(),), config=mhc.Config(streams=2))
    assert relative(compiled(model, streams=2)(inputs()), made()(inputs())) < 1e-5


def shifted(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda place, config: original(place, config) + 0.3


def test_verify_rolls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    before, expected = snapshot(model), model(inputs())
    monkeypatch.setattr(start_values, "bias", shifted(start_values.bias))
    with pytest.raises(VerificationError, match=r"differs .* by .*e-.*the model is as it was.*exclude"):
        mhc.upgrade(model, (inputs(),))
    assert unchanged(model, before)
    assert torch.equal(model(inputs()), expected)
    report = mhc.upgrade(model, (inputs(),), verify=100.0)
    assert report.max_error is not None
    assert report.max_error > 1e-3


class Magnifying(Net):
    """Roundings of its output become larger than what verify allows."""

    def forward(self, x: Tensor) -> Tensor:
        return (2e4 * super().forward(x)).sin()


def test_verify_allows_for_a_model_that_magnifies_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(Magnifying)
    with pytest.warns(MHCWarning, match=r"magnifies rounding: 2e-07 of what its sites read changes .* more of a batch"):
        report = mhc.upgrade(model, (inputs(),))
    assert report.max_error is not None
    assert 1e-4 < report.max_error < 1e-2
    assert not any(parameter.any() for name, parameter in mhc.named_parameters(model) if name.endswith("bias"))
    mhc.remove(model)
    monkeypatch.setattr(start_values, "bias", shifted(start_values.bias))
    with pytest.raises(VerificationError):
        mhc.upgrade(model, (inputs(),))


def test_verify_sees_a_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    original = start_values.bias
    monkeypatch.setattr(start_values, "bias", lambda place, config: original(place, config) * float("nan"))
    with pytest.raises(VerificationError):
        mhc.upgrade(model, (inputs(),), verify=1e9)


def test_verify_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_values, "bias", shifted(start_values.bias))
    model = made()
    assert mhc.upgrade(model, (inputs(),), verify=False).max_error is None
    assert mhc_state(model)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_any_error_rolls_back(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    model = made()
    before, expected = snapshot(model), model(inputs())
    original = owners.adopt

    def failing(module: nn.Module) -> None:
        if module is model.get_submodule("blocks.1"):
            raise error("third")
        original(module)

    monkeypatch.setattr(owners, "adopt", failing)
    with pytest.raises(error, match="third"):
        mhc.upgrade(model, (inputs(),))
    assert unchanged(model, before)
    assert torch.equal(model(inputs()), expected)


@pytest.mark.parametrize("where", ["", "blocks.1"])
def test_name_taken(where: str) -> None:
    model = made()
    model.get_submodule(where).mhc = nn.Linear(1, 1)
    before = snapshot(model)
    with pytest.raises(NameTakenError, match=r"has an attribute `mhc` already.*rename it"):
        mhc.upgrade(model, (inputs(),))
    assert unchanged(model, before)


def test_name_taken_on_a_block_can_be_excluded() -> None:
    model = made(Net, 3)
    model.get_submodule("blocks.2").mhc = 3  # type: ignore[assignment]
    with pytest.raises(NameTakenError, match=r"exclude=\('blocks\.2\.\*',\)"):
        mhc.upgrade(model, (inputs(),))
    report = mhc.upgrade(model, (inputs(),), config=mhc.Config(exclude=("blocks.2.*",)))
    assert len(report.sites) == 4


WRONG: dict[str, tuple[Any, Any]] = {
    "none": ((), None),
    "too many": ((inputs(), inputs()), None),
    "wrong width": ((torch.randn(2, 9),), None),
    "unknown keyword": ((inputs(),), {"mask": None}),
    "no tensor": (("text",), None),
    "a tensor, not a tuple": (inputs(), None),
}


@pytest.mark.core(3)
@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("function", [mhc.explain, mhc.upgrade])
def test_wrong_arguments(function: Callable[..., Any], call: tuple[Any, Any]) -> None:
    model = made()
    before = snapshot(model)
    with pytest.raises(CaptureError, match="pass args as a tuple and kwargs as a dict"):
        function(model, *call)
    assert unchanged(model, before)
    assert mhc.upgrade(model, (inputs(),)).sites


class Noisy(nn.Module):
    """Batch norm, dropout, a counter and a cache."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(8, 16), nn.BatchNorm1d(16)
        self.block, self.second = Block(dropout=0.3), Block(dropout=0.3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, cache: dict[str, Tensor] | None = None) -> Tensor:
        self.calls.add_(1)
        x = self.norm(self.stem(x))
        if cache is not None:
            cache["x"] = x.detach()
            cache["sum"].add_(1.0)
        out: Tensor = self.second(self.block(x))
        return out


@pytest.mark.core(2)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("function", [mhc.explain, mhc.upgrade])
def test_nothing_else_changes(function: Callable[..., Any], training: bool) -> None:
    """Running statistics, counters, random state, arguments and training flags are left alone."""
    model = made(Noisy).train(training)
    model.get_submodule("second").train(not training)
    before, random = snapshot(model), torch.get_rng_state()
    x, cache = inputs(6), {"sum": torch.zeros(2)}
    given = x.clone()
    assert len(function(model, (x,), {"cache": cache}).sites) == 4
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(x, given)
    assert cache.keys() == {"sum"}
    assert not cache["sum"].any()
    state, _, flags = snapshot(model)
    assert all(torch.equal(state[name], value) for name, value in before[0].items())
    assert {name: flags[name] for name in before[2]} == before[2]
    if function is mhc.explain:
        assert unchanged(model, before)


def test_no_residual() -> None:
    model = made(Plain)
    before, expected = snapshot(model), model(inputs())
    with pytest.warns(mhc.MHCWarning, match="nothing to rewrite") as caught:
        report = mhc.upgrade(model, (inputs(),))
    assert len([warning for warning in caught if issubclass(warning.category, mhc.MHCWarning)]) == 1
    assert report.sites == ()
    assert "0 sites" in str(report)
    assert unchanged(model, before)
    with pytest.warns(mhc.MHCWarning, match="nothing to rewrite"):
        out = compiled(model)(inputs())
    assert torch.equal(out, expected)


@pytest.mark.slow
def test_casts_that_swap_parameters() -> None:
    """They refuse tensors to which something refers weakly."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model = upgraded(moved=True)
        expected = compiled(upgraded(moved=True))(inputs())
        model.to(torch.float64)
        assert {p.dtype for p in model.parameters()} == {torch.float64}
        out = compiled(model)(inputs().double())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert relative(out, expected) < 1e-5
