"""The sweep over launch configurations: each is tried on an op forward and backward, and the best are noted.

A space is a function from a spec to tiles, as generated files hold them in TILES: `--space module:function` names one.
Without it, each kernel's most promising configurations by the model of `mhc_compile.codegen.runtime.space` are tried in
turn, the one launch each way among them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from bench.kernels.support import cases, work
from bench.kernels.support.context import Context
from bench.kernels.support.generated import Generated, Named, Tiles
from bench.kernels.support.reasons import reason
from bench.kernels.timing.clocks import interleave, sets_for
from bench.kernels.timing.race import us
from mhc_compile.codegen import Spec
from mhc_compile.codegen.runtime import tune
from mhc_compile.codegen.runtime.space import candidates

Space = Callable[[Spec], Iterable[Tiles]]
OPS = ("seam", "enter", "leave")
TOKENS = 8192  # for the model
DRY = 3  # candidates of a dry run
NOISE = 0.98
NEAR = 2e-2  # relative: a configuration that gives other results is no candidate


def promising(spec: Spec) -> Iterator[Tiles]:
    """Yield the file's own tiles with those of one kernel replaced."""
    own: Tiles = Generated(spec).module.TILES
    for direction in ("forward", "backward"):
        for kernel in tune.kernels(spec, direction):
            for tile in candidates(spec, kernel, TOKENS)[: tune.TRIES]:
                yield {**own, kernel: tile}


def space(name: str) -> Space:
    """Return the function that a command line names, or `promising`."""
    if not name:
        return promising
    module, _, function = name.partition(":")
    found: Space = getattr(importlib.import_module(module), function)
    return found


def run(context: Context) -> list[dict[str, Any]]:
    """Return a row for each op and shape."""
    every = space(context.space)
    n = context.sizes.streams[0]
    specs = [spec for c in context.sizes.channels for spec in cases.ops(n, c) if spec.op in OPS]
    rows = []
    for place, spec in enumerate(specs):
        share = context.part(len(specs) - place)
        candidates = list(every(spec))[: DRY if context.dry else None]
        problems = work.compile_ahead([(spec, tiles) for tiles in (None, *candidates)], share.part(2))
        if problems[0]:
            print(f"{spec.name}: {problems[0]}")
            continue
        rows.append(swept(spec, list(zip(candidates, problems[1:], strict=True)), share))
        if context.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return rows


def swept(spec: Spec, candidates: Iterable[tuple[Tiles, str]], context: Context) -> dict[str, Any]:
    """Try every candidate, unless a reason not to stands beside it, against the file's own tiles."""
    kernels = Generated(spec)
    own: Tiles = kernels.module.TILES
    bench = _Bench(kernels, context)
    tried: list[dict[str, Any]] = [bench.timed(own)]
    for tiles, why in candidates:
        if context.deadline.over:
            break
        tried.append({"tiles": tiles, "forward": 0.0, "backward": 0.0, "why": why} if why else bench.timed(tiles))
    best = {direction: _best(tried, direction) for direction in ("forward", "backward")}
    return {
        "op": spec.op,
        "name": spec.name,
        "n": spec.n,
        "channels": spec.channels,
        "dtype": spec.dtype,
        "tokens": context.sizes.tokens,
        "best": {direction: {"tiles": row["tiles"], "seconds": row[direction]} for direction, row in best.items()},
        "own": tried[0],
        "tried": tried,
    }


def _best(tried: Sequence[dict[str, Any]], direction: str) -> dict[str, Any]:
    """Return the fastest, but the file's own tiles, which come first, unless one is faster by more than noise."""
    first = min((row for row in tried if not row["why"]), key=lambda row: row[direction], default=tried[0])
    return first if first[direction] < NOISE * tried[0][direction] else tried[0]


class _Bench:
    """Inputs of an op, and the results of its own tiles to compare with."""

    def __init__(self, kernels: Generated, context: Context) -> None:
        self.kernels, self.context = kernels, context
        tokens, device = context.sizes.tokens, context.device
        one = kernels.given(tokens, device)
        self.sets = sets_for(one["x"].numel() * one["x"].element_size(), device)
        self.given = [one, *(kernels.given(tokens, device, seed) for seed in range(1, self.sets))]
        self.upstream = [kernels.upstream(tokens, device, 100 + seed) for seed in range(self.sets)]
        self.made = [kernels.forward(given) for given in self.given]
        self.found = kernels.backward(self.given[0], self.made[0], self.upstream[0])

    def timed(self, tiles: Tiles) -> dict[str, Any]:
        """Return seconds of both directions, or why there are none."""
        row: dict[str, Any] = {"tiles": tiles, "forward": 0.0, "backward": 0.0, "why": ""}
        try:
            made = self.kernels.forward(self.given[0], tiles)
            found = self.kernels.backward(self.given[0], made, self.upstream[0], tiles)
            row["why"] = _differs(made, self.made[0]) or _differs(found, self.found)
        except Exception as error:
            row["why"] = reason(error)
        if not row["why"]:
            timed = interleave(
                {
                    "forward": lambda i: self.kernels.forward(self.given[i], tiles),
                    "backward": lambda i: self.kernels.backward(self.given[i], self.made[i], self.upstream[i], tiles),
                },
                self.context.clock, sets=self.sets, rounds=max(3, self.context.rounds // 3),
            )  # fmt: skip
            row |= {direction: t.seconds for direction, t in timed.items()}
            row["why"] = next((t.why for t in timed.values() if t.why), "")
        return row


def _differs(one: Named, two: Named) -> str:
    for name, a in one.items():
        b = two[name].double()
        error = (a.double() - b).norm() / b.norm().clamp(min=1e-30)
        if not float(error) <= NEAR:
            return f"{name} differs by {float(error):.1e}"
    return ""


HEADS = ("tuned", "direction", "own", "best", "gain", "what changed")


def lines(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return rows of the table."""
    found: list[tuple[str, ...]] = []
    for direction, best in row["best"].items():
        own = row["own"][direction]
        gain = f"{own / best['seconds']:.2f}x" if best["seconds"] else ""
        changed = [
            f"{kernel} {name}={value}"
            for kernel, numbers in best["tiles"].items()
            for name, value in numbers.items()
            if row["own"]["tiles"].get(kernel, {}).get(name) != value
        ]
        found.append((row["name"], direction, us(own), us(best["seconds"]), gain, ", ".join(changed)))
    return found
