"""Graphs of a model in DistributedDataParallel stay whole.

Dynamo cuts such a graph between the buckets of gradients, wherever that is, so that buckets are sent while backward
goes on. Streams flow through the whole of a graph, so one with sites is handed over as it is, as with
`torch._dynamo.config.optimize_ddp = False`: DistributedDataParallel then sends behind the graph's backward. Blocks that
are compiled one by one send in between.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from mhc_compile.passes.bind_sites import markers


@functools.cache
def keep_whole() -> None:
    """Have Dynamo cut no graph that has sites."""
    if not torch.distributed.is_available():
        return
    from torch._dynamo.backends.distributed import DDPOptimizer

    cut: Callable[..., Any] = DDPOptimizer.compile_fn

    @functools.wraps(cut)
    def compile_fn(self: Any, gm: fx.GraphModule, example_inputs: Sequence[Any], **rest: Any) -> Any:
        if any(True for module in gm.modules() for _ in markers(module)):
            return self.backend_compile_fn(gm, example_inputs, **rest)
        return cut(self, gm, example_inputs, **rest)

    # Dynamo puts a DDPOptimizer of its own around any backend, and cuts before the backend hears of the graph. The
    # only other way is `optimize_ddp = False`, which holds for the whole process: for other people's models, too.
    DDPOptimizer.compile_fn = compile_fn  # type: ignore[method-assign]  # a method is replaced on purpose
