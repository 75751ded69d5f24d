"""torch.distributed.checkpoint: what two processes with FSDP2 save, two and one load, plan and optimizer included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from tests.end_to_end.distributed.ranks import on_ranks
from tests.end_to_end.distributed.staged import Staged, parts
from tests.nets.small import compiled, inputs, made, relative, upgraded

checkpoint: Any = pytest.importorskip("torch.distributed.checkpoint")
states: Any = pytest.importorskip("torch.distributed.checkpoint.state_dict")
FOLDER = "checkpoint"  # in the working folder
pytestmark = pytest.mark.xdist_group("processes")


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(mhc.param_groups(model, lr=1e-2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    out = compiled(model)(inputs())
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
    optimizer.step()
    optimizer.zero_grad()


def sharded(moved: bool) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = upgraded(moved=moved)
    mhc.shard_sites(model)
    for block in model.get_submodule("blocks").children():
        fully_shard(block)
    fully_shard(model)
    return model


def saved(rank: int) -> Tensor:
    """Train, save, load into another model, and train on with both; what the first computed when it was saved."""
    models = [sharded(moved=True), sharded(moved=False)]
    optimizers = [optimizer_of(model) for model in models]
    step(models[0], optimizers[0])
    state = dict(zip(("model", "optimizer"), states.get_state_dict(models[0], optimizers[0]), strict=True))
    checkpoint.async_save(state, checkpoint_id=FOLDER).result()
    theirs = dict(zip(("model", "optimizer"), states.get_state_dict(models[1], optimizers[1]), strict=True))
    checkpoint.load(theirs, checkpoint_id=FOLDER)
    states.set_state_dict(
        models[1], optimizers[1], model_state_dict=theirs["model"], optim_state_dict=theirs["optimizer"]
    )
    at_once = compiled(models[0])(inputs()).detach()
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer)
    first, second = (compiled(model)(inputs()).detach() for model in models)
    assert torch.equal(first, second)  # moments of the optimizer came along
    return at_once


def test_saved_by_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    monkeypatch.chdir(tmp_path)  # the processes' folder as well
    expected, _ = on_ranks(saved, tmp_path)
    alone = upgraded()
    state = {"model": states.get_model_state_dict(alone)}
    checkpoint.load(state, checkpoint_id=FOLDER)
    states.set_model_state_dict(alone, state["model"])
    assert relative(compiled(alone)(inputs()), expected) < 1e-5

    whole = tmp_path / "whole.pt"
    dcp_to_torch_save(FOLDER, whole)
    plain = made()
    mhc.restore(plain, torch.load(whole, weights_only=False)["model"])
    assert relative(compiled(plain)(inputs()), expected) < 1e-5


def saved_in_stages(rank: int) -> bool:
    """One layer on the first process and three on the second save; two on each load, and one process in the test."""
    whole = upgraded(Staged, 4, moved=True)
    stage = parts(whole, (1, 3))[rank]
    mhc.connect_stages({rank: stage}, 2)
    checkpoint.save({"model": states.get_model_state_dict(stage)}, checkpoint_id=FOLDER)
    other = parts(upgraded(Staged, 4), (2, 2))[rank]
    mhc.connect_stages({rank: other}, 2)
    state = {"model": states.get_model_state_dict(other)}
    checkpoint.load(state, checkpoint_id=FOLDER)
    states.set_model_state_dict(other, state["model"])
    expected = whole.state_dict()
    return all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


@pytest.mark.slow
def test_saved_by_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert on_ranks(saved_in_stages, tmp_path) == [True, True]
    whole, plain = upgraded(Staged, 4), made(Staged, 4)
    state = {"model": states.get_model_state_dict(whole)}
    checkpoint.load(state, checkpoint_id=FOLDER)
    mhc.restore(plain, state["model"])
    expected = upgraded(Staged, 4, moved=True)
    assert torch.equal(compiled(plain)(inputs()), compiled(expected)(inputs()))
