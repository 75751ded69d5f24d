"""A net that is cut into the stages of a pipeline, and what runs them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import mhc_compile as mhc
from tests.nets.small import Net, inputs

Loss = Callable[[Tensor, Tensor], Tensor]
MICROBATCHES = 8
SINGLE, LOOPED, FOLDED = (
    ("GPipe", "1F1B"),
    ("LoopedBFS", "Interleaved1F1B", "InterleavedZeroBubble"),
    ("ZBVZeroBubble",),
)
SENT_EARLY = "DualPipeV, sent early"
SCHEDULES = (*SINGLE, *LOOPED, *FOLDED, "DualPipeV", SENT_EARLY)


class Staged(Net):
    """Blocks under names of their own, and any part of the model may be missing, as in a stage."""

    def __init__(self, layers: int = 4, **kwargs: Any) -> None:
        super().__init__(layers, **kwargs)
        self.blocks: Any = nn.ModuleDict({str(i): block for i, block in enumerate(self.blocks)})

    def forward(self, x: Tensor) -> Tensor:
        if self.stem is not None:
            x = self.stem(x)
        for block in self.blocks.values():
            x = block(x)
        return self.head(x) if self.head is not None else x


def cut(model: nn.Module, layers: Sequence[str], first: bool, last: bool) -> nn.Module:
    """A copy with some of its layers, named as in the whole."""
    part: Any = copy.deepcopy(model)
    for name in [name for name in part.blocks if name not in layers]:
        del part.blocks[name]
    part.stem, part.head = part.stem if first else None, part.head if last else None
    return part


def parts(model: Any, sizes: Sequence[int]) -> dict[int, nn.Module]:
    """Stages of so many layers each."""
    names = iter(model.blocks)
    layers = [[next(names) for _ in range(size)] for size in sizes]
    return {i: cut(model, each, i == 0, i == len(sizes) - 1) for i, each in enumerate(layers)}


def own(schedule: str, rank: int, ranks: int) -> list[int]:
    """The stages of a process: one, two that lie apart, or two of which the second comes back."""
    if schedule in SINGLE:
        return [rank]
    return [rank, rank + ranks] if schedule in LOOPED else [rank, 2 * ranks - 1 - rank]


def loss(y: Tensor, target: Tensor) -> Tensor:
    return (y - target).square().mean()


def data(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Inputs and targets in the model's dtype, for which its first parameter stands."""
    dtype, batch = next(model.parameters()).dtype, 2 * MICROBATCHES
    target = torch.randn(batch, 5, 4, generator=torch.Generator().manual_seed(3))
    return inputs(batch, 5).to(dtype), target.to(dtype)


def pipelined(
    schedule: str, stages: Mapping[int, nn.Module], count: int, x: Tensor, target: Tensor, group: Any = None
) -> list[Tensor]:
    """A step of a schedule of torch's; the losses, where the last stage is here."""
    from torch.distributed import pipelining

    made = [pipelining.PipelineStage(part, i, count, torch.device("cpu"), group=group) for i, part in stages.items()]
    kind: Any = pipelining.schedules.get_schedule_class(schedule.partition(",")[0])
    run = kind(made[0] if schedule in SINGLE else made, MICROBATCHES, loss_fn=loss)
    if schedule == SENT_EARLY:
        mhc.send_early(run)
    losses: list[Tensor] = []
    given: dict[str, Any] = {"target": target, "losses": losses} if count - 1 in stages else {}
    run.step(*([x] if 0 in stages else []), **given)
    return losses


def alone(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor, target: Tensor) -> list[Tensor]:
    """The same of the whole model in this process."""
    losses = []
    for mine, theirs in zip(x.chunk(MICROBATCHES), target.chunk(MICROBATCHES), strict=True):
        losses.append(loss(run(mine), theirs))
        (losses[-1] / MICROBATCHES).backward()
    return losses


def compile_stage(model: nn.Module, compiler: str) -> None:
    model.compile(backend="mhc", options={"compiler": compiler})


def connected(model: nn.Module, sizes: Sequence[int]) -> dict[int, nn.Module]:
    """All stages in this process."""
    made = parts(model, sizes)
    mhc.connect_stages(made, len(sizes))
    return made
