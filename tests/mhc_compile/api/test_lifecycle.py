"""Afterwards: checkpoints, restore, remove, parameter groups."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.api.checkpoints import EXTRA_STATE
from mhc_compile.errors import AlreadyUpgradedError, NotUpgradedError, PlanMismatchError, TrainedParametersError
from tests.nets.small import Net, PostBlock, Shared, compiled, inputs, made, perturb, snapshot, unchanged, upgraded


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """Saved and loaded as safely as torch can."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def test_state_dict_keeps_its_keys() -> None:
    before = made(Shared).state_dict()
    model = upgraded(Shared)
    after = model.state_dict()
    assert [key for key in after if "mhc" not in key] == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    ours = {key for key in after if "mhc" in key}
    names = {f"{prefix}.{leaf}" for prefix, leaf in _sites(model)}
    assert ours == names | {"mhc._extra_state"}


def _sites(model: nn.Module) -> set[tuple[str, str]]:
    leaves = ("phi", "alpha", "bias", "base")
    return {(name.rpartition(".")[0], leaf) for name, _ in mhc.named_parameters(model) for leaf in leaves}


def test_names_are_those_of_the_branches() -> None:
    model = upgraded()
    names = {name for name, _ in mhc.named_parameters(model)}
    assert names == {
        f"blocks.{i}.mhc.{branch}.{leaf}"
        for i in (0, 1)
        for branch in ("attn", "mlp")
        for leaf in ("phi", "alpha", "bias")
    }


@pytest.mark.core(1)
@pytest.mark.parametrize("make", [Net, Shared, lambda: Net(2, PostBlock)], ids=["net", "shared", "post-norm"])
@pytest.mark.parametrize("config", [mhc.Config(), mhc.Config(streams=2, connection="hc")], ids=["mhc", "hc"])
def test_restore(make: Any, config: mhc.Config, moved: bool) -> None:
    model = upgraded(make, config=config, moved=moved)
    expected = compiled(model)(inputs())
    again = made(make, seed=9)
    missing, unexpected = mhc.restore(again, through_a_file(model.state_dict()))
    assert (missing, unexpected) == ([], [])
    assert torch.equal(compiled(again)(inputs()), expected)
    assert mhc.upgrade(again).sites == mhc.upgrade(model).sites
    assert list(again.state_dict()) == list(model.state_dict())


def test_load_state_dict_into_an_upgraded_model() -> None:
    model, again = upgraded(moved=True), upgraded()
    again.load_state_dict(through_a_file(model.state_dict()))
    assert torch.equal(compiled(again)(inputs()), compiled(model)(inputs()))


def test_load_the_original_weights_into_an_upgraded_model() -> None:
    model = upgraded(moved=True)
    loaded = model.load_state_dict(made(seed=4).state_dict(), strict=False)
    assert loaded.unexpected_keys == []
    assert all("mhc." in key for key in loaded.missing_keys)


@pytest.mark.core(2)
@pytest.mark.parametrize(
    "other",
    [{"make": Net, "layers": 3}, {"make": Shared}, {"config": mhc.Config(streams=2)}, {"config": mhc.Config(eps=1e-5)}],
    ids=["layers", "class", "streams", "eps"],
)
def test_checkpoint_of_another_plan(other: dict[str, Any]) -> None:
    state = upgraded(other.pop("make", Net), **other).state_dict()
    model = upgraded()
    with pytest.raises(PlanMismatchError, match=r"another plan.*mhc_compile\.restore\(model, state_dict\)"):
        model.load_state_dict(state, strict=False)


def test_restore_into_another_architecture() -> None:
    state = upgraded(Net, 3).state_dict()
    model = made(Net, 2)
    before = snapshot(model)
    with pytest.raises(PlanMismatchError, match=r"sites in 'blocks\.2'.*does not have"):
        mhc.restore(model, state)
    assert unchanged(model, before)


def test_restore_rolls_back() -> None:
    state = upgraded().state_dict()
    del state["head.weight"]
    model = made()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"head\.weight"):
        mhc.restore(model, state)
    assert unchanged(model, before)
    missing, _ = mhc.restore(model, state, strict=False)
    assert missing == ["head.weight"]


def test_restore_refuses() -> None:
    model = upgraded()
    with pytest.raises(AlreadyUpgradedError, match=r"use model\.load_state_dict"):
        mhc.restore(model, model.state_dict())
    with pytest.raises(NotUpgradedError, match="not one of an upgraded model"):
        mhc.restore(made(), made().state_dict())


def edited(state: dict[str, Any], **changes: Any) -> dict[str, Any]:
    data = json.loads(bytes(state[EXTRA_STATE].tolist()))
    data.update(changes)
    return {**state, EXTRA_STATE: torch.tensor(list(json.dumps(data).encode()), dtype=torch.uint8)}


def test_plan_of_another_version() -> None:
    state = edited(upgraded().state_dict(), version=99)
    with pytest.raises(PlanMismatchError, match="format 99, this mhc_compile reads 1"):
        mhc.restore(made(), state)
    with pytest.raises(PlanMismatchError, match="version"):
        upgraded().load_state_dict(state)


def test_checkpoint_from_before_fields_went() -> None:
    """It restores and loads as one of today."""
    model = upgraded(moved=True)
    gone = {"convention": "paper", "init": "home", "readout": "mean"}
    state = edited(model.state_dict(), function=mhc.Config().function() | gone)
    again, loaded = made(seed=9), upgraded()
    mhc.restore(again, state)
    loaded.load_state_dict(state)
    expected = compiled(model)(inputs())
    for each in (again, loaded):
        assert torch.equal(compiled(each)(inputs()), expected)
        assert torch.equal(each.state_dict()[EXTRA_STATE], model.state_dict()[EXTRA_STATE])
    other = made()
    before = snapshot(other)
    with pytest.raises(PlanMismatchError, match=r"readout must be one of .*'sum'\); install the rel"):
        mhc.restore(other, edited(state, function=mhc.Config().function() | gone | {"readout": "sum"}))
    assert unchanged(other, before)


def test_extra_state_of_someone_else() -> None:
    with pytest.raises(PlanMismatchError, match="not a plan"):
        mhc.restore(made(), {EXTRA_STATE: torch.ones(3)})


def test_remove(moved: bool) -> None:
    model = upgraded(moved=moved)
    before = snapshot(made())
    if moved:
        held = snapshot(model)
        with pytest.raises(TrainedParametersError, match=r"4 of 4 sites have moved.*force=True"):
            mhc.remove(model)
        assert unchanged(model, held)
        mhc.remove(model, force=True)
    else:
        mhc.remove(model)
    assert unchanged(model, before)
    assert torch.equal(model(inputs()), made()(inputs()))
    with pytest.raises(NotUpgradedError, match="nothing to remove"):
        mhc.remove(model)


@pytest.mark.parametrize("leaf", ["phi", "alpha", "bias"])
def test_remove_sees_every_parameter(leaf: str) -> None:
    model = upgraded()
    with torch.no_grad():
        model.get_parameter(f"blocks.1.mhc.mlp.{leaf}").add_(1e-6)
    with pytest.raises(TrainedParametersError, match=r"1 of 4 sites have moved.*blocks\.1\.mlp"):
        mhc.remove(model)


def test_removed_model_compiles_as_a_plain_one() -> None:
    """Other backends run it again, also those that met it before."""
    model = upgraded(moved=True)
    run = compiled(model)
    run(inputs())
    mhc.remove(model, force=True)
    assert torch.equal(torch.compile(model, backend="aot_eager")(inputs()), made()(inputs()))


def test_weight_decay_pulls_towards_the_start() -> None:
    """The bias is a fixed start and a learned change: decay of everything leaves the original function."""
    model = upgraded(moved=True)
    optimizer = torch.optim.SGD([p for _, p in mhc.named_parameters(model)], lr=1.0, weight_decay=1.0)
    for name, parameter in mhc.named_parameters(model):
        parameter.grad = torch.zeros_like(parameter)
        if name.endswith("alpha"):
            parameter.grad = None
    optimizer.step()
    torch.testing.assert_close(compiled(model)(inputs()), made()(inputs()))


def test_perturb_moves_everything() -> None:
    """What the tests of sameness stand on."""
    start, moved = upgraded(), upgraded()
    perturb(moved)
    for (name, a), (_, b) in zip(mhc.named_parameters(start), mhc.named_parameters(moved), strict=True):
        assert not torch.equal(a, b), name


class Tied(nn.Module):
    """Two layers that are one module."""

    def __init__(self) -> None:
        super().__init__()
        block = Net(1).get_submodule("blocks.0")
        self.stem, self.layers = nn.Linear(8, 16), nn.ModuleList([block, block])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return x


def test_tied_layers(moved: bool) -> None:
    """One module under two names: the checkpoint holds it under both, and loads."""
    expected = made(Tied)(inputs())
    model = upgraded(Tied, moved=moved)
    out = compiled(model)(inputs())
    if not moved:
        torch.testing.assert_close(out, expected)
    again = made(Tied, seed=3)
    mhc.restore(again, through_a_file(model.state_dict()))
    assert torch.equal(compiled(again)(inputs()), out)
