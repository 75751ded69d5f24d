"""Contenders on one shape: forward, and forward with backward, interleaved on the same sets of inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.kernels.support.context import Context
from bench.kernels.support.generated import drawn
from bench.kernels.support.reasons import reason
from bench.kernels.timing.clocks import Timed, interleave, sets_for
from bench.kernels.timing.sites import Contender, Maker, Shape, UnavailableError
from mhc_compile.codegen.runtime.dtypes import TORCH

DIRECTIONS = ("forward", "both")


class Race:
    """Contenders with their inputs and upstream gradients."""

    def __init__(self, shape: Shape, makers: Mapping[str, Maker], device: str, out: Mapping[str, str]) -> None:
        self.shape, self.device = shape, device
        self.contenders: dict[str, Contender] = {}
        self.out = {name: why for name, why in out.items() if why}
        for name, maker in makers.items():
            if name in self.out:
                continue
            try:
                self.contenders[name] = maker(shape, device)
            except UnavailableError as error:
                self.out[name] = str(error)
            except Exception as error:  # a peer's own, whatever it is
                self.out[name] = reason(error)
        tokens, n, c = shape.tokens, shape.n, shape.channels
        self.sets = sets_for(tokens * n * c * TORCH[shape.dtype].itemsize, device)
        self.inputs = [self._drawn(seed) for seed in range(self.sets)]
        self.upstream = [self._drawn(100 + seed) for seed in range(self.sets)]

    def _drawn(self, seed: int) -> list[Tensor]:
        """Return x, f, H_post and H_res, or numbers of their shapes."""
        shape = self.shape
        dtype = TORCH[shape.dtype]
        like = {
            "x": torch.empty(shape.tokens, shape.n, shape.channels, dtype=dtype, device="meta"),
            "f": torch.empty(shape.tokens, shape.channels, dtype=dtype, device="meta"),
            "post": torch.empty(shape.tokens, shape.n, device="meta"),
            "res": torch.empty(shape.tokens, shape.n, shape.n, device="meta"),
        }
        return [t.requires_grad_() for t in drawn(like, self.device, seed).values()]

    def steps(self, direction: str) -> dict[str, Callable[[int], object]]:
        """Return a step for each contender."""
        return {name: self._step(one, direction == "both") for name, one in self.contenders.items()}

    def _step(self, one: Contender, both: bool) -> Callable[[int], object]:
        grads: dict[int, list[Tensor]] = {}

        def step(number: int) -> object:
            inputs = self.inputs[number]
            results = one.run(*inputs[:4])
            if not both:
                return None
            if number not in grads:  # in the warm-up
                given = self.upstream[number][: len(results)]
                grads[number] = [g.detach().reshape(r.shape).to(r.dtype) for r, g in zip(results, given, strict=True)]
            leaves = [*(inputs if one.seam else inputs[:2]), *(p for p in one.parameters if p.requires_grad)]
            return torch.autograd.grad(results, leaves, grads[number], allow_unused=True)

        return step


def run(
    shape: Shape, makers: Mapping[str, Maker], context: Context, out: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return a row for each contender; those that are known to be out, with the reason, are not tried."""
    race = Race(shape, makers, context.device, out or {})
    timed = {
        direction: interleave(race.steps(direction), context.clock, sets=race.sets, rounds=context.rounds)
        for direction in DIRECTIONS
    }
    return [_row(name, shape, race, {d: timed[d].get(name, Timed(why=race.out.get(name, ""))) for d in DIRECTIONS})
            for name in makers]  # fmt: skip


def _row(name: str, shape: Shape, race: Race, timed: Mapping[str, Timed]) -> dict[str, Any]:
    detail = race.contenders[name].detail if name in race.contenders else ""
    why = next((t.why for t in timed.values() if t.why), "")
    return {
        "contender": name,
        "detail": detail,
        **dataclasses.asdict(shape),
        **{direction: dataclasses.asdict(t) for direction, t in timed.items()},
        "why": why,
    }


HEADS = ("site", "contender", "forward", "both", "both / ours", "host", "why not")


def lines(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return rows of the table; the first contender of a shape is what the others are compared with."""
    found: list[tuple[str, ...]] = []
    ours: dict[str, float] = {}
    for row in rows:
        shape = f"n={row['n']} C={row['channels']} {row['dtype']} {row['norm']}"
        if shape not in ours:
            ours[shape] = row["both"]["seconds"]
        forward, both = row["forward"]["seconds"], row["both"]["seconds"]
        ratio = f"{both / ours[shape]:.2f}x" if both and ours[shape] else ""
        host = f"{row['both']['host'] * 1e6:.0f} us" if both else ""
        found.append((shape, row["contender"], us(forward), us(both), ratio, host, row["why"][:60]))
    return found


def us(seconds: float) -> str:
    """Return microseconds, or nothing."""
    return f"{seconds * 1e6:.1f} us" if seconds else ""
