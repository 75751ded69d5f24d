"""Compile a model block by block, and train it with FSDP2 on two processes as on one.

Streams are handed from one compiled block to the next, so the blocks together compute what the whole model computes,
and the code of one block serves all that are like it. Takes about half a minute on two cores, without a GPU:

    python examples/blockwise.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

import mhc_compile as mhc

RANKS, STEPS, WIDTH, BATCH, LENGTH = 2, 5, 32, 4, 16


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, length, width]` to the same shape."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    """Four blocks between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 8)
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, length, 8]` to the same shape."""
        return self.head(self.blocks(self.stem(x)))


def train(rank: int | None) -> tuple[list[float], dict[str, Tensor]]:
    """Train on all data, or on one process's share; return the losses and the parameters afterwards."""
    torch.manual_seed(0)
    model = Model()
    data = torch.randn(STEPS, BATCH, LENGTH, 8)
    mhc.upgrade(model, (data[0],))  # the same in every process, and before anything is sharded
    if rank is not None:
        data = data.chunk(RANKS, dim=1)[rank]
        mhc.shard_sites(model)  # the hyper-connections stay fp32 in a group of their own
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    for block in model.blocks:
        block.compile(backend="mhc")

    optimizer = torch.optim.SGD(mhc.param_groups(model, lr=0.1))
    losses = []
    for x in data:
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), x.cumsum(1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    whole = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in model.named_parameters()}
    return losses, {name: p.detach() for name, p in whole.items()}


def work(rank: int, folder: str) -> None:
    """Be one of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS)
    torch.save(train(rank), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def main() -> None:
    """Run the example."""
    losses, expected = train(None)
    print(f"one process:   loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS} steps")
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (folder,), nprocs=RANKS)
        found = [torch.load(Path(folder, f"{rank}.pt")) for rank in range(RANKS)]
    means = [sum(pair) / RANKS for pair in zip(*(losses for losses, _ in found), strict=True)]
    print(f"two processes: loss {means[0]:.3f} -> {means[-1]:.3f}, each with half of the batch and of the parameters")

    phi = max(p.abs().max().item() for name, p in expected.items() if name.endswith(".phi"))
    print(f"the largest entry of phi, which started at 0: {phi:.1e}")
    worst = max((p - expected[name]).abs().max().item() for _, trained in found for name, p in trained.items())
    print(f"largest difference between their {len(expected)} parameters: {worst:.1e}")
    if not (phi > 100 * worst and worst < 1e-5 and losses[-1] < losses[0]):
        sys.exit("failed: two processes do not train what one process trains")


if __name__ == "__main__":
    main()
