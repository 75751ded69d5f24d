"""The runner: it numbers, times, lints, compares and dumps, so that passes need not."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Iterable

from torch import fx
from torch._logging._internal import trace_structured

from mhc_compile.errors import MHCError, PassError
from mhc_compile.passes.base import Context, Pass
from mhc_compile.passes.graph import optable

log = logging.getLogger(__name__)  # TORCH_LOGS="mhc_compile" or "+mhc_compile" shows it


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds that one pass took in the last run, and the nodes it left."""

    name: str
    seconds: float
    nodes: int


_timings: list[Timing] = []


def timings() -> list[Timing]:
    """Return the timings of the last pipeline run in this process."""
    return list(_timings)


def run(pipeline: Iterable[Pass], gm: fx.GraphModule, context: Context) -> None:
    """Run the passes in order on the graph, in place.

    Raises:
        MHCError: a pass refuses the graph; what it says is for the user.
        PassError: a pass broke its contract: it failed otherwise, changed the graph as an analysis, or left it invalid.
    """
    _timings.clear()
    before = _count(gm)
    for number, step in enumerate(pipeline):
        start = time.perf_counter()
        try:
            step(gm, context)
            seconds = time.perf_counter() - start
            after = _count(gm)
            if not step.rewrites and after != before:
                raise PassError(f"{step.name} is an analysis, but changed the graph: {_difference(before, after)}")
            if step.rewrites and after != before:
                gm.graph.lint()
        except MHCError:
            raise
        except Exception as error:
            done = ", ".join(timing.name for timing in _timings) or "none"
            raise PassError(f"pass {step.name} failed on this graph ({error}); passes before it: {done}") from error
        _timings.append(Timing(step.name, seconds, len(gm.graph.nodes)))
        log.info("%d.%s %.1f ms: %s", number, step.name, seconds * 1e3, _difference(before, after))
        _dump(f"mhc_{number}_{step.name}", gm)
        before = after


def _count(gm: fx.GraphModule) -> Counter[str]:
    return Counter(optable.name(node) or node.op for node in gm.graph.nodes)


def _difference(before: Counter[str], after: Counter[str]) -> str:
    """Say which ops became more or fewer."""
    ops = sorted(op for op in before.keys() | after.keys() if after[op] != before[op])
    changes = [f"{after[op] - before[op]:+d} {op}" for op in ops]
    return ", ".join(changes) or "graph unchanged"


def _dump(name: str, gm: fx.GraphModule) -> None:
    """Hand the graph to torch's structured trace (TORCH_TRACE, tlparse) and to the log at debug level."""
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": "string"},
        payload_fn=lambda: str(gm.graph),
    )
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s\n%s", name, str(gm.graph))
