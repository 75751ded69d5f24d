"""Train a model in four pipeline stages on two processes, by DeepSeek's DualPipeV schedule, as in one process.

The whole model is upgraded, then cut: each process keeps the layers of its two stages. What goes from stage to stage is
the streams, packed into one tensor. Takes about half a minute on two cores, without a GPU:

    python examples/pipeline.py
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import ScheduleDualPipeV
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

import mhc_compile as mhc

RANKS, STAGES, MICROBATCHES, STEPS, WIDTH = 2, 4, 8, 5, 32


class Block(nn.Module):
    """A pre-norm residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, width]` to the same shape."""
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    """Blocks between two linear layers, of which a stage has only some: the others are None or deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.stem: nn.Module | None = nn.Linear(8, WIDTH)
        self.head: nn.Module | None = nn.Linear(WIDTH, 8)
        self.blocks = nn.ModuleDict({str(i): Block() for i in range(2 * STAGES)})

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, 8]` to the same shape."""
        x = self.stem(x) if self.stem is not None else x
        for block in self.blocks.values():
            x = block(x)
        return self.head(x) if self.head is not None else x

    def stage(self, index: int) -> nn.Module:
        """Return a copy with the layers of one stage, named as in the whole model."""
        part = copy.deepcopy(self)
        for name in list(part.blocks):
            if int(name) // 2 != index:
                del part.blocks[name]
        if index > 0:
            part.stem = None
        if index < STAGES - 1:
            part.head = None
        return part


def upgraded() -> tuple[Model, Tensor]:
    """Return the whole model, the same in every process, and data."""
    torch.manual_seed(0)
    model, data = Model(), torch.randn(STEPS, 4 * MICROBATCHES, 8)
    mhc.upgrade(model, (data[0],))
    return model, data


def train_stages(rank: int) -> tuple[list[float], dict[str, Tensor]]:
    """Train the first and the last stage on process 0, and the two between them on process 1."""
    model, data = upgraded()
    parts = {index: model.stage(index) for index in (rank, STAGES - 1 - rank)}
    mhc.connect_stages(parts, STAGES)  # streams cross the boundaries from here on
    for part in parts.values():
        part.compile(backend="mhc")
    optimizers = [torch.optim.SGD(mhc.param_groups(part, lr=0.1)) for part in parts.values()]
    stages = (PipelineStage(part, index, STAGES, torch.device("cpu")) for index, part in parts.items())
    schedule = mhc.send_early(ScheduleDualPipeV([*stages], MICROBATCHES, loss_fn=functional.mse_loss))
    losses = []
    for x in data:
        for optimizer in optimizers:
            optimizer.zero_grad()
        of_microbatches: list[Tensor] = []
        if rank == 0:
            schedule.step(x, target=x.flip(-1), losses=of_microbatches)
            losses.append(sum(loss.item() for loss in of_microbatches) / MICROBATCHES)
        else:
            schedule.step()
        for optimizer in optimizers:
            optimizer.step()
    return losses, trained(parts)


def train_whole() -> tuple[list[float], dict[str, Tensor]]:
    """Train the whole model in this process."""
    model, data = upgraded()
    model.compile(backend="mhc")
    optimizer = torch.optim.SGD(mhc.param_groups(model, lr=0.1))
    losses = []
    for x in data:
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), x.flip(-1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, trained({0: model})


def trained(parts: Mapping[int, nn.Module]) -> dict[str, Tensor]:
    """Return all parameters by name: a stage's are called what they are called in the whole model."""
    return {name: p.detach() for part in parts.values() for name, p in part.named_parameters()}


def work(rank: int, folder: str) -> None:
    """Be one of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS)
    torch.save(train_stages(rank), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def main() -> None:
    """Run the example."""
    losses, expected = train_whole()
    print(f"one process: loss {losses[0]:.4f} -> {losses[-1]:.4f} in {STEPS} steps")
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (folder,), nprocs=RANKS)
        (of_stages, first), (_, second) = (torch.load(Path(folder, f"{rank}.pt")) for rank in range(RANKS))
    print(f"four stages: loss {of_stages[0]:.4f} -> {of_stages[-1]:.4f}")
    phi = max(p.abs().max().item() for name, p in expected.items() if name.endswith(".phi"))
    print(f"the largest entry of phi, which started at 0: {phi:.1e}")
    worst = max((p - expected[name]).abs().max().item() for name, p in {**first, **second}.items())
    print(f"largest difference between their {len(expected)} parameters: {worst:.1e}")
    if not (len(first) + len(second) == len(expected) and phi > 100 * worst and worst < 1e-5):
        sys.exit("failed: four stages do not train what one process trains")


if __name__ == "__main__":
    main()
