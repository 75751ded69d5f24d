"""Every test starts with an empty Dynamo and the same random state."""

from __future__ import annotations

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
