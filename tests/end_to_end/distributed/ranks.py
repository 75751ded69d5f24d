"""A function on two processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

dist: Any = torch.distributed
multiprocessing: Any = torch.multiprocessing
RANKS = 2
Work = Callable[[int], Any]


def on_ranks(work: Work, folder: Path) -> list[Any]:
    """What a function of a module returns on each of the processes."""
    multiprocessing.spawn(_process, (work, folder), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def _process(rank: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS)
    try:
        torch.save(work(rank), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
