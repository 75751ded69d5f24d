"""A captured run, or whatever else Dynamo keeps, leaves no tensor and no model behind."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable

import pytest
from torch import nn

import mhc_compile as mhc
from mhc_compile.capture.model_run import run_captured
from mhc_compile.errors import CaptureError
from tests.nets.small import Net, Separate, compiled, inputs, made


def test_nothing_of_the_run_lives_on() -> None:
    """Dynamo keeps what it compiled; were it to keep inputs and outputs too, every activation would stay."""
    captured = run_captured(made(), (inputs(),), {})
    kept = [weakref.ref(tensor) for graph in captured.graphs for tensor in graph.outputs]
    assert kept
    assert all(each() is not None for each in kept)
    del captured
    gc.collect()
    assert all(each() is None for each in kept)


def lazily(model: nn.Module) -> None:
    run = compiled(model)
    run(inputs())
    run(inputs())


def step(model: nn.Module) -> None:
    mhc.upgrade(model, (inputs(),))
    compiled(model)(inputs()).square().sum().backward()


def exported(model: nn.Module) -> None:
    mhc.upgrade(model, (inputs(),))
    with contextlib.suppress(CaptureError):  # of several graphs
        mhc.export(model, (inputs(),))


def restored(model: nn.Module) -> None:
    mhc.upgrade(model, (inputs(),))
    twin = type(model)()
    mhc.restore(twin, model.state_dict())
    with mhc.plain(twin):
        compiled(twin)(inputs())


@pytest.mark.filterwarnings("ignore:mhc created")
def explained(model: nn.Module) -> object:
    return mhc.explain(model, (inputs(),))


@pytest.mark.core(1)
@pytest.mark.parametrize("make", [Net, Separate])
@pytest.mark.parametrize("use", [explained, lazily, step, exported, restored], ids=lambda f: f.__name__)
def test_deleted_models_are_freed(use: Callable[[nn.Module], object], make: Callable[[], nn.Module]) -> None:
    """Dynamo keeps every backend until it is reset, and compiled code as long as its guards hold."""
    model = make()
    kept = [weakref.ref(each) for each in (*model.modules(), *model.parameters())]
    use(model)
    del model
    gc.collect()
    assert not any(each() is not None for each in kept)
