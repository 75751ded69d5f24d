"""gradient_buckets: under DistributedDataParallel a graph with sites stays whole, and others are cut as ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.nets.small import compiled, gradients, inputs, made, same, upgraded

dist: Any = torch.distributed
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


@pytest.fixture(autouse=True)
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of one, and buckets so small that they cut even tiny graphs."""
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 1000)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def parallel(model: nn.Module) -> Any:
    return nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.01)


@pytest.mark.core(1)
@pytest.mark.parametrize("cut", [True, False], ids=["cut", "whole"])
def test_gradient_buckets(cut: bool) -> None:
    """Whether torch would cut or not, DistributedDataParallel is the model itself."""
    whole, model = upgraded(moved=True), upgraded(moved=True)
    expected = compiled(whole)(inputs())
    torch._dynamo.reset()
    with torch._dynamo.config.patch(optimize_ddp=cut):
        out = compiled(parallel(model))(inputs())
    assert torch.equal(out, expected)
    assert same(gradients(out, model.parameters()), gradients(expected, whole.parameters()))


def test_a_model_without_sites_is_cut() -> None:
    graphs: list[Any] = []

    def backend(gm: Any, example_inputs: Any) -> Any:
        graphs.append(gm)
        return gm.forward

    run: Any = torch.compile(parallel(made()), backend=backend)
    run(inputs())
    assert len(graphs) > 1
