"""torch.distributed.checkpoint: what two processes with FSDP2 save, two and one load, plan and optimizer included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from tests.end_to_end.distributed.ranks import on_ranks
from tests.nets.small import compiled, inputs, made, relative, upgraded

checkpoint: Any = pytest.importorskip("torch.distributed.checkpoint")
states: Any = pytest.importorskip("torch.distributed.checkpoint.state_dict")
FOLDER = "checkpoint"  # in the working folder


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
