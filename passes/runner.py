"""The runner: it numbers, times, lints, compares and dumps, so that passes need not."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable

from torch import fx
from torch._logging._internal import trace_structured

from mhc_compile.errors import MHCError, PassError
from mhc_compile.passes.base import Pass, PassTime, Request, Results
from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.facts import GraphFacts

log = logging.getLogger(__name__)  # TORCH_LOGS="mhc_compile" or "+mhc_compile" shows it


def run(pipeline: Iterable[Pass], gm: fx.GraphModule, request: Request) -> Results:
    """Run the passes in order on the graph, in place.

    Returns:
        What the passes returned, by type, and the time that each took. `GraphFacts` are made anew after each rewrite.

    Raises:
        MHCError: a pass refuses the graph; what it says is for the user.
        PassError: a pass broke its contract: it failed otherwise, changed the graph as an analysis, or left it invalid.
    """
    kept: dict[type, object] = {}  # results of rewrites
    seen: dict[type, object] = {}  # results of analyses since the last rewrite
    times: list[PassTime] = []
    facts, before = GraphFacts(gm), _count(gm)
    for number, step in enumerate(pipeline):
        start = time.perf_counter()
        made = _run_one(step, gm, request, Results({GraphFacts: facts, **kept, **seen}, tuple(times)))
        seconds = time.perf_counter() - start
        after = _count(gm)
        _check(step, gm, before, after, times)
        if step.rewrites:
            facts, seen = GraphFacts(gm), {}
        if made is not None:
            (kept if step.rewrites else seen)[type(made)] = made
        times.append(PassTime(step.name, seconds, len(gm.graph.nodes)))
        log.info("%d.%s %.1f ms: %s", number, step.name, seconds * 1e3, _difference(before, after))
        _dump(f"mhc_{number}_{step.name}", gm)
        before = after
    return Results({GraphFacts: facts, **kept, **seen}, tuple(times))


def _run_one(step: Pass, gm: fx.GraphModule, request: Request, results: Results) -> object:
    try:
        return step(gm, request, results)
    except MHCError:
        raise
    except Exception as error:
        raise _failed(step, error, results.times) from error


def _check(
    step: Pass, gm: fx.GraphModule, before: Counter[str], after: Counter[str], times: Iterable[PassTime]
) -> None:
    """Check that an analysis left the graph alone, and that a rewrite left a valid one."""
    if after == before:
        return
    if not step.rewrites:
        raise PassError(f"{step.name} is an analysis, but changed the graph: {_difference(before, after)}")
    try:
        gm.graph.lint()
    except Exception as error:
        raise _failed(step, error, times) from error


def _failed(step: Pass, error: Exception, times: Iterable[PassTime]) -> PassError:
    done = ", ".join(each.name for each in times) or "none"
    return PassError(f"pass {step.name} failed on this graph ({error}); passes before it: {done}")


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
