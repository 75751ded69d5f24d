"""A function on several processes. Two are kept for the next one, since importing torch takes them seconds."""

from __future__ import annotations

import functools
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

dist: Any = torch.distributed
multiprocessing: Any = torch.multiprocessing
RANKS = 2
Work = Callable[[int], Any]


def on_ranks(work: Work, folder: Path, ranks: int = RANKS, deadline: float = 600) -> list[Any]:
    """What a function of a module returns on each of the processes; beyond the deadline (seconds) they hang."""
    if ranks == RANKS:
        _kept().run(work, folder, deadline)
    else:
        multiprocessing.spawn(_once, (work, folder, ranks), nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def _join(rank: int, ranks: int, folder: str | Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=ranks)


def _once(rank: int, work: Work, folder: Path, ranks: int) -> None:
    _join(rank, ranks, folder)
    try:
        torch.save(work(rank), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


class _Processes:
    """Processes of one group that run what they are sent, until one of them fails or this process ends."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(RANKS)]
        folder = tempfile.mkdtemp()
        self.ends: list[Any] = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=_serve, args=(rank, folder, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()

    def run(self, work: Work, folder: Path, deadline: float) -> None:
        """Run a function on all; where one fails the others are ended, since they may wait for it."""
        for end in self.ends:
            end.send((work, folder, Path.cwd()))
        latest, waiting = time.monotonic() + deadline, {*self.ends}
        while waiting:
            ready: list[Any] = connection.wait([*waiting], timeout=latest - time.monotonic())
            said = next(filter(None, map(_said, ready)), None) if ready else f"nothing within {deadline} s"
            waiting.difference_update(ready)
            if said is not None:
                _kept.cache_clear()
                for process in self.processes:
                    process.kill()
                raise RuntimeError(f"a process failed: {said}")


@functools.cache
def _kept() -> _Processes:
    return _Processes()


def _said(end: Any) -> str | None:
    """What a process answers: its failure, if there was one."""
    try:
        said: str | None = end.recv()
    except EOFError:
        return "it ended"
    return said


def _serve(rank: int, folder: str, pipe: Any) -> None:
    _join(rank, RANKS, folder)
    while True:
        work, out, here = pipe.recv()
        os.chdir(here)
        torch._dynamo.reset()
        torch.manual_seed(0)
        try:
            torch.save(work(rank), out / f"{rank}.pt")
            pipe.send(None)
        except Exception:
            pipe.send(traceback.format_exc())
