"""How long a process waits for messages, and messages that do not overlap with what it computes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch.distributed.pipelining import schedules


class _Late:
    """A message that is received when somebody waits for it, behind those that were asked for before it.

    The order is kept, since gloo tells the messages of two processes apart by nothing else.
    """

    def __init__(self, queue: deque[_Late], op: Any) -> None:
        self.queue, self.op, self.work = queue, op, None
        queue.append(self)

    def wait(self) -> None:
        while self.work is None:
            first = self.queue.popleft()
            op = first.op
            first.work = op.op(op.tensor, group=op.group, tag=op.tag, group_src=op.group_peer)
        self.work.wait()


class Messages:
    """The messages of torch's schedules.

    Attributes:
        waited: seconds that the process waited for them in the last step.
    """

    def __init__(self) -> None:
        """Nothing was waited for yet."""
        self.waited = 0.0
        self._begin, self._wait = schedules._batch_p2p, schedules._wait_batch_p2p
        self._queue: deque[_Late] = deque()

    @contextmanager
    def of_a_step(self, late: bool) -> Iterator[None]:
        """Time the waiting of a step; let messages come late, so that nothing is computed while they are under way."""
        self.waited = 0.0
        begin = self._begin_late if late else self._begin
        with (
            mock.patch.object(schedules, "_wait_batch_p2p", self._wait_timed),
            mock.patch.object(schedules, "_batch_p2p", begin),
        ):
            yield

    def _wait_timed(self, work: list[Any]) -> None:
        start = time.perf_counter()
        self._wait(work)
        self.waited += time.perf_counter() - start

    def _begin_late(self, ops: list[Any], desc: str | None = None) -> list[Any]:
        if any(op.op is not dist.irecv for op in ops):
            return self._begin(ops, desc)
        return [_Late(self._queue, op) for op in ops]
