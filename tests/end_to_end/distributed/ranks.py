"""A function on several processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

dist: Any = torch.distributed
multiprocessing: Any = torch.multiprocessing
RANKS = 2
Work = Callable[[int], Any]


def on_ranks(work: Work, folder: Path, ranks: int = RANKS, deadline: float | None = None) -> list[Any]:
    """What a function of a module returns on each of the processes; beyond the deadline (seconds) they hang."""
    group = multiprocessing.spawn(_process, (work, folder, ranks), nprocs=ranks, join=deadline is None)
    end = time.monotonic() + (deadline or 0)
    while group is not None and not group.join(timeout=max(0.1, end - time.monotonic())):
        if time.monotonic() >= end:
            for process in group.processes:
                process.kill()
            raise TimeoutError(f"processes ran longer than {deadline} s")
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def _process(rank: int, work: Work, folder: Path, ranks: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=ranks)
    try:
        torch.save(work(rank), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
