"""Time of each op, forward and backward, of each kernel within, and of a whole seam against torch alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.kernels.support import cases, work
from bench.kernels.support.context import Context
from bench.kernels.support.generated import Generated
from bench.kernels.support.reasons import reason
from bench.kernels.timing import race, sites
from bench.kernels.timing.clocks import Timed, interleave, sets_for
from bench.kernels.timing.race import us
from bench.kernels.timing.sites import Shape
from mhc_compile.codegen import Spec
from mhc_compile.codegen.inspect.record import Launch, recording
from mhc_compile.codegen.triton.generate import bytes_per_token

DIRECTIONS = ("forward", "backward")


def run(context: Context) -> dict[str, list[dict[str, Any]]]:
    """Return rows of ops and rows of sites."""
    shapes = context.sizes.shapes()
    specs = [spec for n, c in shapes for spec in cases.ops(n, c)]
    problems = dict(zip(specs, work.compile_ahead([(spec, None) for spec in specs], context.part(2)), strict=True))
    found: list[dict[str, Any]] = []
    raced: list[dict[str, Any]] = []
    for n, c in shapes:
        for spec in cases.ops(n, c):
            found += _failed(spec, problems[spec]) if problems[spec] else timed(spec, context)
        if not context.deadline.over:
            out = {"mhc_compile": problems[cases.ops(n, c)[0]]}
            raced += race.run(Shape(context.sizes.tokens, n, c, norm="rms"), sites.OURS, context, out)
        free(context)
    return {"ops": found, "sites": raced}


def free(context: Context) -> None:
    """Give back memory between shapes."""
    torch._dynamo.reset()
    if context.device.startswith("cuda"):
        torch.cuda.empty_cache()


def timed(spec: Spec, context: Context) -> list[dict[str, Any]]:
    """Time an op and its kernels; a row for each direction."""
    if context.deadline.over:
        return _failed(spec, "out of time")
    tokens = context.sizes.tokens
    try:
        calls, sets = calls_of(spec, tokens, context.device)
        rows = [_timed(spec, direction, calls[direction], sets, context) for direction in DIRECTIONS]
    except Exception as error:
        return _failed(spec, reason(error))
    return rows


def _failed(spec: Spec, why: str) -> list[dict[str, Any]]:
    return [{"op": spec.op, **_shape(spec), "why": why}]


def calls_of(spec: Spec, tokens: int, device: str) -> tuple[dict[str, Callable[[int], object]], int]:
    """Return the two directions as steps, and how many sets of inputs they have."""
    kernels = Generated(spec)
    one = kernels.given(tokens, device)
    sets = sets_for(one["x"].numel() * one["x"].element_size(), device)
    given = [one, *(kernels.given(tokens, device, seed) for seed in range(1, sets))]
    upstream = [kernels.upstream(tokens, device, 100 + seed) for seed in range(sets)]
    made = [kernels.forward(inputs) for inputs in given]
    return {
        "forward": lambda i: kernels.forward(given[i]),
        "backward": lambda i: kernels.backward(given[i], made[i], upstream[i]),
    }, sets


def _shape(spec: Spec) -> dict[str, Any]:
    return {"name": spec.name, "n": spec.n, "channels": spec.channels, "dtype": spec.dtype}


def _timed(spec: Spec, direction: str, call: Callable[[int], object], sets: int, context: Context) -> dict[str, Any]:
    whole = interleave({"op": call}, context.clock, sets=sets, rounds=context.rounds)["op"]
    parts = {} if whole.why else kernels_of(spec, call, sets, context)
    least, most = (both[direction == "backward"] * context.sizes.tokens for both in bytes_per_token(spec))
    seconds = whole.seconds
    return {
        "op": spec.op,
        "direction": direction,
        **_shape(spec),
        **dataclasses.asdict(whole),
        "kernels": {name: dataclasses.asdict(part) for name, part in parts.items()},
        "bytes": {"least": least, "most": most},
        "bandwidth": least / seconds if seconds else 0.0,
        "share": least / seconds / context.ceiling if seconds else 0.0,
        "share_most": most / seconds / context.ceiling if seconds else 0.0,
    }


def kernels_of(spec: Spec, call: Callable[[int], object], sets: int, context: Context) -> dict[str, Timed]:
    """Time every launch of an op, in the op's order and on one set of inputs, so that the cache holds what it would."""
    module = Generated(spec).module
    launches: list[list[Launch]] = []
    for number in range(sets):
        with recording(module, run=True) as noted:
            call(number)
        launches.append(list(noted))
    steps = {launch.name: _again(launches, place) for place, launch in enumerate(launches[0])}
    return interleave(steps, context.clock, sets=sets, rounds=context.rounds, turn=False)


def _again(launches: Sequence[Sequence[Launch]], place: int) -> Callable[[int], object]:
    def step(number: int) -> object:
        one = launches[number][place]
        return one.kernel[one.grid](**one.arguments, **one.options)

    return step


HEADS = ("op", "direction", "time", "quartiles", "TB/s", "of copy", "no L2", "kernels")


def line(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of the table."""
    name = row.get("name", row["op"])
    if row["why"]:
        return (name, row.get("direction", ""), "failed", row["why"][:60], "", "", "", "")
    kernels = ", ".join(f"{part} {us(t['seconds'])}" for part, t in row["kernels"].items())
    return (
        name,
        row["direction"],
        us(row["seconds"]),
        f"{row['low'] * 1e6:.1f}-{row['high'] * 1e6:.1f}",
        f"{row['bandwidth'] / 1e12:.2f}",
        f"{row['share']:.0%}",
        f"{row['share_most']:.0%}",
        kernels,
    )
