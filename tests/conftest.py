"""Every test starts with an empty Dynamo and the same random state."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.fixture(params=[False, True], ids=["start", "moved"])
def moved(request: pytest.FixtureRequest) -> bool:
    """Whether phi, alpha and biases have left their start: at the start a lost connection looks right."""
    return bool(request.param)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call() -> Iterator[None]:
    """Keep pytest's log handlers off torch's structured trace, or every record of a compilation is formatted."""
    trace = logging.getLogger("torch.__trace")
    kept, trace.handlers = trace.handlers, []
    try:
        return (yield)
    finally:
        trace.handlers = kept
