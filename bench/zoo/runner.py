"""Each family in a process of its own, forked from one that has torch and transformers already."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import IO

import torch
import torch._dynamo
import transformers  # noqa: F401  here once, not in every child

from bench.zoo.check import Row, check, empty
from bench.zoo.family import Family


@dataclasses.dataclass
class _Child:
    family: Family
    process: BaseProcess
    answer: Connection
    log: IO[bytes]
    deadline: float


def rows(families: Sequence[Family], jobs: int, limit: float) -> Iterator[Row]:
    """Run the families, `jobs` at a time, `limit` seconds each; yield rows as they finish."""
    torch.set_num_threads(1)
    gc.freeze()  # children need not look for garbage among what the imports made
    gc.set_threshold(50_000, 20, 100)
    waiting, running = list(families), list[_Child]()
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(_start(waiting.pop(0), limit))
        patience = max(0.0, min(child.deadline for child in running) - time.monotonic())
        ready = wait([child.answer for child in running], patience)
        for child in list(running):
            if child.answer in ready or time.monotonic() > child.deadline:
                running.remove(child)
                yield _finish(child, child.answer in ready, limit)


def _start(family: Family, limit: float) -> _Child:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    log = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the child
    process = fork.Process(target=_work, args=(family, theirs, log.fileno()), daemon=True)
    process.start()
    theirs.close()
    return _Child(family, process, ours, log, time.monotonic() + limit)


def _work(family: Family, answer: Connection, log: int) -> None:
    for stream in (1, 2):  # what libraries print belongs to nobody, until the process dies of it
        os.dup2(log, stream)
    answer.send(check(family))


def _finish(child: _Child, ready: bool, limit: float) -> Row:
    row = empty(child.family)
    if not ready:
        child.process.kill()
        row.verdict, row.why = "timeout", f"took longer than {limit:.0f} s"
    else:
        try:
            row = child.answer.recv()
        except EOFError:
            child.process.join()
            row.verdict, row.why = "crash", _last_words(child)
    child.process.join()
    child.answer.close()
    child.log.close()
    return row


def _last_words(child: _Child) -> str:
    code = child.process.exitcode or 0
    child.log.seek(0)
    lines = child.log.read().decode(errors="replace").strip().splitlines()
    died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"{died}: {lines[-1][:200]}" if lines else died
