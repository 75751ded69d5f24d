"""Groups in optimizers that others have built; the Trainer that uses them, resumed after a kill."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

import mhc_compile as mhc
from mhc_compile import integrations
from mhc_compile.errors import MissingDependencyError, NotUpgradedError
from mhc_compile.integrations import MHCTrainerMixin, regroup
from tests.nets.small import Net, made, upgraded

pytestmark = pytest.mark.xdist_group("trainer")  # what is made once is made by one worker

TRAINER = Path(__file__).with_name("train.py")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return upgraded(Net, 1)


def settings(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, set[tuple[float, float]]]:
    """Learning rates and decays by kind of parameter."""
    found: dict[str, set[tuple[float, float]]] = {}
    by_id = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        kind = name.rpartition(".")[2] if ".mhc." in name else "own"
        found.setdefault(kind, set()).add(by_id[id(parameter)])
    return found


def test_groups_of_any_optimizer(model: nn.Module) -> None:
    decayed = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    others = [p for name, p in model.named_parameters() if name.endswith("bias")]
    groups = [{"params": decayed, "weight_decay": 0.1, "betas": (0.5, 0.9)}, {"params": others, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=0.01)
    regroup(optimizer, model, mhc_lr=0.3, phi_lr_scale=0.5)
    assert settings(optimizer, model) == {
        "own": {(0.01, 0.1), (0.01, 0.0)}, "phi": {(0.15, 0.1)}, "alpha": {(0.3, 0.0)}, "bias": {(0.3, 0.0)},
    }  # fmt: skip
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    phi = next(p for name, p in mhc.named_parameters(model) if name.endswith(".phi"))
    assert [g["betas"] for g in optimizer.param_groups if any(p is phi for p in g["params"])] == [(0.5, 0.9)]
    LambdaLR(optimizer, lambda step: 0.5)
    assert {rate for rate, _ in settings(optimizer, model)["phi"]} == {0.075}


def test_groups_without_a_rate_of_their_own(model: nn.Module) -> None:
    optimizer = SGD(model.parameters(), lr=0.01, weight_decay=0.2)
    regroup(optimizer, model)
    assert settings(optimizer, model) == {
        "own": {(0.01, 0.2)}, "phi": {(1.0, 0.2)}, "alpha": {(0.01, 0.0)}, "bias": {(0.01, 0.0)},
    }  # fmt: skip
    with pytest.raises(NotUpgradedError, match=r"call mhc_compile\.upgrade"):
        regroup(optimizer, made())


class Base:
    """Looks like a Trainer."""

    def __init__(self, model: nn.Module, optimizer: Any = None, backend: str | None = None) -> None:
        self.model, self.optimizer = model, optimizer
        self.args = type("Args", (), {"torch_compile": backend is not None, "torch_compile_backend": backend})

    def create_optimizer(self) -> Any:
        self.optimizer = self.optimizer or SGD(self.model.parameters(), lr=0.01, weight_decay=0.2)
        return self.optimizer


class Ours(MHCTrainerMixin, Base):
    pass


def test_a_trainer_compiles_and_groups(model: nn.Module) -> None:
    trainer = Ours(model, mhc_lr=0.3)
    assert model._compiled_call_impl is not None
    assert settings(trainer.create_optimizer(), model)["alpha"] == {(0.3, 0.0)}
    given = SGD(model.parameters(), lr=0.01, weight_decay=0.2)
    assert Ours(model, given).create_optimizer() is given
    assert settings(given, model)["alpha"] == {(0.01, 0.2)}


@pytest.mark.parametrize(("backend", "compiles"), [("mhc", True), ("inductor", False)])
def test_what_the_arguments_compile(backend: str, compiles: bool) -> None:
    model = upgraded(Net, 1)
    Ours(model, backend=backend)
    assert (model._compiled_call_impl is not None) == compiles
    plain = made()
    Ours(plain, backend=backend)
    assert plain._compiled_call_impl is None


def test_the_class_is_made_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        integrations.Nothing  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        integrations.trainer.Nothing  # noqa: B018
    integrations.trainer.__dict__.pop("MHCTrainer", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mhc_compile\[hugging-face\]'"):
        integrations.MHCTrainer  # noqa: B018
    monkeypatch.undo()
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    assert issubclass(integrations.MHCTrainer, transformers.Trainer)
    assert integrations.MHCTrainer is integrations.MHCTrainer


def train(folder: Path, what: str, mode: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, TRAINER, folder, what, mode], capture_output=True, text=True)
    return done.returncode, done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr


MODES = {
    "fp32": {}, "bf16": {"bf16": True}, "accumulated": {"gradient_accumulation_steps": 2},
    "checkpointed": {"gradient_checkpointing": True}, "by argument": {"torch_compile_backend": "mhc"},
    "all": {"bf16": True, "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_was_killed_goes_on_bit_for_bit(mode: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    options = json.dumps(MODES[mode])
    code, whole = train(tmp_path / "whole", "whole", options)
    assert code == 0, whole
    assert train(tmp_path / "parts", "kill", options)[0] == 7
    code, resumed = train(tmp_path / "parts", "resume", options)
    assert code == 0, resumed
    assert json.loads(resumed) == json.loads(whole)
    losses = [entry["loss"] for entry in json.loads(whole)["losses"]]
    assert len(set(losses)) == len(losses) == 6
