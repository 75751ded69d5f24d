"""Train torchtitan's small Llama with hyper-connections: pipeline stages, FSDP2, layers compiled one by one.

What mHC adds to the recipe is marked. Without a GPU torchtitan's Trainer does not start (`device_module.set_device`
asks for a CUDA device), nor does a step after its `apply_fsdp` (`disable_fsdp_gradient_division` leads to PREMUL_SUM,
which gloo has not). So this goes the Trainer's way by hand, on CPU processes, and checks that all cuts train alike:

    pip install --no-deps torchtitan==0.2.2
    python examples/torchtitan/train.py
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

import mhc_compile as mhc

torch._utils._get_available_device_type = lambda: "cpu"  # torchtitan says "cuda" where there is no device
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.llama3 import get_train_spec, llama3_args
from torchtitan.models.llama3.infra.parallelize import apply_compile

# processes, of these in a pipeline, schedule; the others share the stages' parameters and the batch
CUTS = ((1, 1, "1F1B"), (2, 1, "1F1B"), (2, 2, "1F1B"), (2, 2, "Interleaved1F1B"), (4, 2, "1F1B"))
LAYERS, BATCH, LENGTH, STEPS = 4, 8, 64, 4


def parallelize(model: nn.Module, dims: ParallelDims, config: JobConfig) -> nn.Module:
    """Compile each layer as torchtitan does, then shard."""
    apply_compile(model, config.compile)
    if dims.fsdp_enabled:
        mesh = dims.get_mesh("fsdp")
        mhc.shard_sites(model, mesh=mesh)  # mHC: its parameters as a group of their own
        for layer in model.get_submodule("layers").children():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def text() -> Tensor:
    """Return bytes that ship with Python, a batch for every step."""
    read = Path(functional.__file__).read_bytes()[: STEPS * BATCH * (LENGTH + 1)]
    return torch.tensor(list(read)).view(STEPS, BATCH, LENGTH + 1)


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy."""
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def step(run: Any, parts: list[Any], x: Tensor, target: Tensor, first: bool, last: bool) -> float:
    """Run forward and backward, by a schedule where there is one; return the loss on the last stage, else 0."""
    found: list[Tensor] = []
    if run is not None:
        run.step(*([x] if first else []), **({"target": target, "losses": found} if last else {}))
    else:
        found = [loss_of(parts[0](x), target)]
        found[0].backward()
    return torch.stack(found).mean().item() if last else 0.0


def train(rank: int, cut: tuple[int, int, str], folder: str) -> None:
    """Be one of the processes; the last stage writes its losses."""
    torch.set_num_threads(1)
    processes, pipeline, schedule = cut
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=processes)
    config = JobConfig()
    config.training.seq_len, config.training.local_batch_size = LENGTH, BATCH * pipeline // processes
    config.parallelism.pipeline_parallel_degree = pipeline
    config.parallelism.pipeline_parallel_schedule = schedule
    config.compile.enable, config.compile.backend = True, "mhc"  # mHC: instead of "inductor"
    shards = processes // pipeline
    dims = ParallelDims(dp_replicate=1, dp_shard=shards, cp=1, tp=1, pp=pipeline, ep=1, etp=1, world_size=processes)

    torch.manual_seed(0)
    arguments = copy.copy(llama3_args["debugmodel"])
    arguments.n_layers, arguments.max_seq_len = LAYERS, LENGTH
    model: Any = get_train_spec().model_cls(arguments)
    with torch.no_grad():
        model.init_weights()
    mhc.upgrade(model, (text()[0, :, :-1],))  # mHC: the whole model, in every process alike
    if pipeline > 1:
        run, parts, first, last = pipeline_llm(
            model, dims, config, torch.device("cpu"), arguments, parallelize, loss_of
        )
        stages = getattr(run, "_stages", None) or [run._stage]
        numbered = {stage.stage_index: stage.submod for stage in stages}
        mhc.connect_stages(numbered, stages[0].num_stages, dims.get_mesh("pp"))  # mHC: streams from stage to stage
    else:
        run, parts, first, last = None, [parallelize(model, dims, config)], True, True
    optimizers = [torch.optim.AdamW(mhc.param_groups(part, lr=1e-3)) for part in parts]  # mHC: its own groups

    losses = []
    shard = dims.get_mesh("fsdp").get_local_rank() if dims.fsdp_enabled else 0
    for batch in text():
        mine = batch.chunk(shards)[shard]
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses.append(step(run, parts, mine[:, :-1].contiguous(), mine[:, 1:].contiguous(), first, last))
        for optimizer in optimizers:
            optimizer.step()
    if last:
        torch.save(losses, Path(folder, f"{rank}.losses"))
    dist.destroy_process_group()


def main() -> None:
    """Train by every cut."""
    expected: list[float] = []
    for cut in CUTS:
        with tempfile.TemporaryDirectory() as folder:
            spawn(train, (cut, folder), nprocs=cut[0])
            found = [torch.load(file) for file in Path(folder).glob("*.losses")]
        losses = torch.tensor(found).mean(0).tolist()  # over those who share the batch
        print("{} processes, {} in a pipeline, {}: loss".format(*cut), *(f"{loss:.4f}" for loss in losses))
        expected = expected or losses
        if not torch.allclose(torch.tensor(losses), torch.tensor(expected), atol=2e-4) or losses[-1] > losses[0]:
            sys.exit("failed: a cut does not train what one process trains")


if __name__ == "__main__":
    main()
