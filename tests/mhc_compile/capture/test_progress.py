"""The bar over a model that is traced: only where somebody sees it."""

from __future__ import annotations

import functools
import io
import sys

import pytest
import torch
from torch import nn
from tqdm.auto import tqdm

from mhc_compile.capture import progress
from mhc_compile.capture.model_run import run_captured

MODULES = 4  # that are called: the Sequential, its Linear, and the inner Sequential with the activation


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setattr(progress, "AFTER", 0.0)
    monkeypatch.setattr("tqdm.auto.tqdm", functools.partial(tqdm, mininterval=0))
    monkeypatch.setenv("COLUMNS", "100")
    return nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.GELU()))


def run(model: nn.Module) -> None:
    run_captured(model, (torch.randn(2, 3),), {}, doing="looking")


def test_a_terminal_sees_how_far_it_is(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch._dynamo.variables.nn_module.record_nn_module_stack
    monkeypatch.setattr(sys, "stderr", seen := Terminal())
    run(model)
    bar = seen.getvalue().split("\r")
    assert any(each.startswith("looking: 100%") and f"{MODULES}/{MODULES}" in each for each in bar)
    assert not bar[-1].strip()  # it cleans up behind itself
    assert torch._dynamo.variables.nn_module.record_nn_module_stack is before


def test_a_file_gets_no_bar(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", seen := io.StringIO())
    run(model)
    assert not seen.getvalue()


def test_without_tqdm_there_is_none(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", seen := Terminal())
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    run(model)
    assert not seen.getvalue()
