"""A schedule on gloo processes of one thread each: how long steps take, what is computed when, what a message takes."""

from __future__ import annotations

import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch.distributed import pipelining
from torch.distributed.pipelining import schedules
from torch.multiprocessing.spawn import spawn

import mhc_compile as mhc
from bench.pipeline.messages import Messages
from bench.pipeline.model import Model, cut, data, loss
from bench.pipeline.tables import table

Spans = list[tuple[str, int, int, float, float]]  # kind, stage, microbatch, start and end within a step
PLAIN, EARLY, LATE = "plain", "mhc, sent early", "mhc, not overlapped"
CONTENDERS = (PLAIN, "mhc", EARLY, LATE)
WARMUP, PINGS = 2, 20


class Timed(pipelining.PipelineStage):
    """A stage that notes when it computes."""

    spans: ClassVar[Spans] = []  # of all stages of the process

    @contextmanager
    def _noted(self, kind: str, microbatch: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.spans.append((kind, self.stage_index, microbatch, start, time.perf_counter()))

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Compute a forward."""
        with self._noted("forward", fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Compute a backward, whole or for inputs only."""
        whole = kwargs.get("full_backward", True)
        with self._noted("backward" if whole else "backward_input", bwd_chunk_id):
            return super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Compute a backward for parameters."""
        with self._noted("backward_weight", bwd_chunk_id):
            return super().backward_weight_one_chunk(bwd_chunk_id, *args, **kwargs)


def measured(schedule: str, ranks: int, args: Namespace) -> list[dict[str, Any]]:
    """Return what each process noted: seconds, spans and waiting of each contender's steps, and seconds of messages."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_process, (schedule, ranks, args, folder), nprocs=ranks)
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(ranks)]


def _process(rank: int, schedule: str, ranks: int, args: Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=ranks)
    steps = {name: _pipeline(name, schedule, rank, ranks, args) for name in CONTENDERS}
    noted: dict[str, Any] = {name: [] for name in CONTENDERS}
    messages = Messages()
    for number in range(WARMUP + args.rounds):
        for name, step in steps.items():
            Timed.spans.clear()
            dist.barrier()
            with messages.of_a_step(late=name == LATE):
                start = time.perf_counter()
                step()
                end = time.perf_counter()
            spans = [(kind, stage, mb, a - start, b - start) for kind, stage, mb, a, b in Timed.spans]
            if number >= WARMUP:
                noted[name].append({"seconds": end - start, "spans": spans, "waited": messages.waited})
    each = args.batch * args.length * args.width
    noted["message"] = {name: _ping(rank, each * (1 if name == PLAIN else args.streams)) for name in CONTENDERS}
    torch.save(noted, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def _pipeline(name: str, schedule: str, rank: int, ranks: int, args: Namespace) -> Any:
    """Return a step of a contender."""
    plan = table(schedule, ranks, args.microbatches)
    x, target = data(args)
    model = Model(args.width, args.layers)
    if name != PLAIN:
        mhc.upgrade(model, (x[: args.batch],), config=mhc.Config(streams=args.streams), verify=False)
    parts = {i: cut(model, i, plan.stages) for i in range(plan.stages) if plan.rank_of(i) == rank}
    if name != PLAIN:
        mhc.connect_stages(parts, plan.stages)
    torch._functorch.config.donated_buffer = False  # for both: a zero bubble runs a backward twice
    for part in parts.values():
        part.compile(backend="inductor" if name == PLAIN else "mhc")
    stages = [Timed(part, i, plan.stages, torch.device("cpu")) for i, part in parts.items()]
    kind: Any = schedules.get_schedule_class(schedule)
    single = issubclass(kind, schedules.PipelineScheduleSingle)
    run = kind(stages[0] if single else stages, args.microbatches, loss_fn=loss)
    if name == EARLY:
        mhc.send_early(run)
    given = {"target": target} if plan.stages - 1 in parts else {}
    return lambda: run.step(*([x] if 0 in parts else []), **given)


def _ping(rank: int, numbers: int) -> float:
    """Return the seconds of a message of so many floats from one process to another, while nobody computes."""
    sent, seconds = torch.zeros(numbers), []
    for _ in range(PINGS if rank < 2 else 0):
        start = time.perf_counter()
        if rank == 0:
            dist.send(sent, 1)
            dist.recv(sent, 1)
        else:
            dist.recv(sent, 0)
            dist.send(sent, 0)
        seconds.append((time.perf_counter() - start) / 2)
    return statistics.median(seconds) if seconds else 0.0
