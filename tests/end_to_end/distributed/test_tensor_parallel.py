"""Tensor and sequence parallel: two processes equal one, with mHC parameters away from their start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import NotUpgradedError, ShardedParametersError
from tests.end_to_end.distributed.ranks import RANKS, on_ranks
from tests.nets.small import compiled, gradient_error, inputs, made, perturb, upgraded

dist: Any = torch.distributed
pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
    pytest.mark.xdist_group("processes"),
]
Tensors = dict[str, Tensor]
FOLDER = "pretrained"  # in the working folder


def pulled(model: nn.Module, part: int | None = None) -> Tensors:
    """Gradients of the model for all tokens, or for a process's part of every sequence."""
    x, upstream = inputs(4, 6), torch.randn(4, 6, 4, generator=torch.Generator().manual_seed(11))
    if part is not None:
        x, upstream = (t.chunk(RANKS, 1)[part] for t in (x, upstream))
    compiled(model, compiler="aot_eager")(x).backward(upstream)
    found: dict[str, Any] = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in found.items()}


def tensor_parallel(mesh: Any) -> Tensors:
    """Branches are sharded by columns, then rows; streams are whole on every process."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = upgraded(moved=True)
    for block in model.get_submodule("blocks").children():
        parallelize_module(block, mesh, {"mlp.0": ColwiseParallel(), "mlp.2": RowwiseParallel()})
    return pulled(model)


def sequence_parallel(mesh: Any, part: int, shard: Any = None) -> Tensors:
    """Every process has its part of the tokens; the model's own gradients are summed by hand, as tools do."""
    from torch.distributed.fsdp import fully_shard

    model = upgraded(moved=True)
    if shard is not None:
        mhc.shard_sites(model, mesh=shard)
        fully_shard(model, mesh=shard)
    mhc.sum_gradients(model, mesh)
    found = pulled(model, part)
    for name in sorted(found.keys() - dict(mhc.named_parameters(model)).keys()):
        dist.all_reduce(found[name], group=mesh.get_group())
    return found


def parallel(rank: int) -> list[Tensors]:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (1, RANKS), mesh_dim_names=("shards", "tokens"))
    shards, tokens = mesh["shards"], mesh["tokens"]
    return [tensor_parallel(tokens), sequence_parallel(tokens, rank), sequence_parallel(tokens, rank, shards)]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Tensor parallel, sequence parallel, and sequence parallel within shards of FSDP2."""
    expected = pulled(upgraded(moved=True))
    for found in on_ranks(parallel, tmp_path):
        for each in found:
            assert each.keys() == expected.keys()
            assert gradient_error([each[name] for name in expected], list(expected.values())) < 3e-5


def hugging_face(rank: int) -> list[Tensors]:
    """A Llama that transformers itself shards, and the same whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from transformers import AutoModelForCausalLM

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS))  # by which transformers knows it
    batch = {"input_ids": torch.randint(64, (2, 8), generator=torch.Generator().manual_seed(0))}
    found = []
    for options in ({}, {"tp_plan": "auto", "device_mesh": init_device_mesh("cpu", (RANKS,))}):
        model: Any = AutoModelForCausalLM.from_pretrained(FOLDER, use_cache=False, **options)
        assert hasattr(model.model.layers[0].mlp.up_proj.weight, "placements") == bool(options)
        mhc.upgrade(model, (), batch)
        perturb(model)
        logits = compiled(model, compiler="aot_eager")(**batch).logits
        logits.backward(torch.randn(logits.shape, generator=torch.Generator().manual_seed(11)))
        grads: dict[str, Any] = {name: p.grad for name, p in model.named_parameters()}
        found.append({name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in grads.items()})
    return found


@pytest.mark.slow
def test_a_plan_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **sizes)).save_pretrained(FOLDER)
    for expected, found in on_ranks(hugging_face, tmp_path):
        assert found.keys() == expected.keys()
        assert gradient_error([found[name] for name in expected], list(expected.values())) < 3e-5


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Any]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_what_shards_would_undo_is_refused(group: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    model = upgraded()
    mhc.sum_gradients(model, group)
    with pytest.raises(
        ShardedParametersError, match="sum_gradients was called before shard_sites, which would undo it"
    ):
        mhc.shard_sites(model)
    sharded: Any = fully_shard(upgraded())
    with pytest.raises(ShardedParametersError, match=r"'blocks\.0\.attn' are sharded with their layer: .*shard_sites"):
        mhc.sum_gradients(sharded, group)
    with pytest.raises(NotUpgradedError):
        mhc.sum_gradients(made(), group)
