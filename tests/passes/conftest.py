"""What tests of passes share: a mesh of this process alone, on which DTensors lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    dist: Any = torch.distributed
    if not dist.is_available():  # torch can be built without, and then has no DTensors
        pytest.skip("torch without distributed")
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()
