"""The launch configurations of each kernel that are worth a try, in the order of a model of bytes and occupancy."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

from mhc_compile.codegen.spec import DTYPES, Spec, power
from mhc_compile.codegen.triton import fragments, grad_streams

Tile = dict[str, int]
REGISTERS = 65536  # per multiprocessor, on every GPU since Volta
IN_FLIGHT = 32768  # bytes that a multiprocessor must have asked for to keep its share of the bandwidth busy


@dataclasses.dataclass(frozen=True)
class Device:
    """What the model knows of a GPU; the default is an H200.

    Attributes:
        processors: multiprocessors.
        warps: that one of them holds.
    """

    processors: int = 132
    warps: int = 64


def candidates(spec: Spec, kernel: str, tokens: int, device: Device | None = None) -> list[Tile]:
    """Return configurations of a kernel, the most promising first.

    Args:
        spec: what the file is for.
        kernel: its name in the file's TILES, or "both".
        tokens: how many there are.
        device: the GPU.
    """
    found = [tile for tile in _SPACES[kernel](spec) if _registers(spec, kernel, tile) <= 255]
    return sorted(found, key=lambda tile: cost(spec, kernel, tile, tokens, device or Device()))


def cost(spec: Spec, kernel: str, tile: Tile, tokens: int, device: Device) -> float:
    """Return bytes to move, weighted by how badly a configuration would use the memory: smaller is better."""
    if kernel == "back":  # the streams' half of it is the larger one
        return cost(spec, "streams", _slices(tile), tokens, device)
    warps, registers = tile["num_warps"], _registers(spec, kernel, tile)
    resident = max(1, min(device.warps // warps, REGISTERS // (registers * 32 * warps)))
    programs = max(1, _programs(spec, kernel, tile, tokens))
    waves = math.ceil(programs / (device.processors * resident)) * device.processors * resident / programs
    asked = resident * _tiles(spec, kernel) * tile["BT"] * tile["BC"] * DTYPES[spec.dtype] * tile.get("num_stages", 1)
    return (_rows(spec, kernel) + _extra(spec, kernel, tile, tokens)) * waves / min(1.0, asked / IN_FLIGHT)


def _project(spec: Spec) -> Iterator[Tile]:
    chunks = [chunk for chunk in (16, 32, 64) if chunk <= max(16, power(spec.channels))]
    for rows, chunk, splits, warps, stages in itertools.product((32, 64, 128), chunks, (1, 4, 8, 16), (4, 8), (1, 2)):
        if splits == 1 or chunk * splits <= 2 * spec.channels:
            yield {"BT": rows, "BC": chunk, "SPLITS": splits, "num_warps": warps, "num_stages": stages}


def _read(spec: Spec) -> Iterator[Tile]:
    whole = power(spec.channels)
    chunks = [whole] if spec.norm != "none" else [c for c in (256, 512, 1024, 2048) if c <= max(256, whole)]
    for rows, chunk, warps in itertools.product((1, 2, 4, 8), chunks, (4, 8, 16)):
        yield {"BT": rows, "BC": chunk, "BM": spec.matrices, "num_warps": warps}


def _both(spec: Spec) -> Iterator[Tile]:
    reads = power(spec.channels) if spec.norm != "none" else min(power(spec.channels), 1024)
    for rows, splits, warps, lag in itertools.product((32, 64), (1, 8, 16, 32), (4, 8), (1, 2, 4)):
        for at_once in (1, 2, 4):
            fits = at_once == 1 or at_once * reads <= 8192
            if fits and (splits == 1 or 32 * splits <= 2 * spec.channels):
                shape = {"BT": rows, "BC": 32, "BR": at_once, "BCR": reads, "SPLITS": splits, "LAG": lag}
                yield {**shape, "num_warps": warps, "num_stages": 2}


def _back(spec: Spec) -> Iterator[Tile]:
    pieces = [c for c in (16, 32, 64, 128) if c <= max(16, power(spec.channels))]
    sums = {"BT": 4, "BC": min(power(spec.channels), 256), "BM": spec.matrices}
    for piece, splits, warps, lag in itertools.product(pieces, (8, 16, 32, 64), (4, 8), (1, 2)):
        slices = {"BS": 16, "BCS": piece, "BP": grad_streams.phi_tokens(spec)}
        yield {**sums, **slices, "SPLITS": splits, "LAG": lag, "num_warps": warps, "num_stages": 1}


def _coefs(spec: Spec) -> Iterator[Tile]:
    chunks = [c for c in (128, 256, 512, 1024) if c <= max(128, power(spec.channels))]
    for rows, chunk, warps in itertools.product((2, 4, 8), chunks, (4, 8)):
        yield {"BT": rows, "BC": chunk, "BM": spec.matrices, "num_warps": warps}


def _streams(spec: Spec) -> Iterator[Tile]:
    pieces = [c for c in (16, 32, 64, 128) if c <= max(16, power(spec.channels))]
    for rows, piece, phi, splits, warps in itertools.product((16, 32), pieces, (16, 32), (4, 8, 16), (4, 8)):
        for stages in (1, 2):
            shape = {"BT": rows, "BC": piece, "BP": phi, "SPLITS": splits}
            yield {**shape, "num_warps": warps, "num_stages": stages}


def _leave(spec: Spec) -> Iterator[Tile]:
    chunks = [c for c in (256, 512, 1024, 2048) if c <= max(256, power(spec.channels))]
    for rows, chunk, warps in itertools.product((1, 2, 4, 8), chunks, (4, 8)):
        yield {"BT": rows, "BC": chunk, "num_warps": warps}


_SPACES: dict[str, Callable[[Spec], Iterator[Tile]]] = {
    "project": _project,
    "read": _read,
    "both": _both,
    "back": _back,
    "coefs": _coefs,
    "streams": _streams,
    "leave": _leave,
    "leave_backward": _leave,
    "replay": _leave,
}


def _tiles(spec: Spec, kernel: str) -> int:
    """Return how many tiles of features a kernel loads at once."""
    old, new = spec.heads + len(spec.history) + spec.mixes, fragments.current(spec)
    loads = {"read": new, "coefs": old + spec.reads, "streams": old + spec.reads + spec.mixes * spec.n}
    return loads.get(kernel, old)


def _live(spec: Spec, kernel: str) -> int:
    """Return about how many tiles are in registers at once, in fp32."""
    old, norm = fragments.distinct(spec), spec.norm != "none"
    held = {"read": 2, "coefs": old + 3 + norm * fragments.current(spec) // 2, "streams": 2 * old + 5 + norm * old // 2}
    rounded = -(-spec.n // 2) if spec.history else 0  # what a replayed write makes beside what it reads
    return held.get(kernel, old + 3) + rounded


def _slices(tile: Tile) -> Tile:
    """Return the part of the backward's one launch that is for the streams."""
    return {**tile, "BT": tile["BS"], "BC": tile["BCS"]}


def _registers(spec: Spec, kernel: str, tile: Tile) -> int:
    """Return an estimate of the registers of a thread."""
    if kernel == "back":
        return max(_registers(spec, "coefs", tile), _registers(spec, "streams", _slices(tile)))
    per_thread = max(1, tile["BT"] * tile["BC"] // (32 * tile["num_warps"]))
    gates = fragments.MOST_GATES + spec.n
    return 40 + gates + per_thread * _live(spec, kernel)


def _programs(spec: Spec, kernel: str, tile: Tile, tokens: int) -> int:
    rows, pieces = math.ceil(tokens / tile["BT"]), math.ceil(spec.channels / tile["BC"])
    grid = {"streams": 2 * pieces * tile.get("SPLITS", 1), **dict.fromkeys(("leave", "replay"), rows * pieces)}
    return grid.get(kernel, rows * tile.get("SPLITS", 1))


def _rows(spec: Spec, kernel: str) -> float:
    """Return the bytes of streams and features that a kernel moves for a token."""
    stored = {"project": spec.n * spec.mixes, "both": spec.n * spec.mixes + 1, "read": 1, "leave": 1, "replay": spec.n}
    back = {"streams": fragments.distinct(spec) + spec.mixes, "leave_backward": fragments.distinct(spec) + 1}
    return (_tiles(spec, kernel) + stored.get(kernel, back.get(kernel, 0))) * spec.channels * DTYPES[spec.dtype]


def _extra(spec: Spec, kernel: str, tile: Tile, tokens: int) -> float:
    """Return the bytes of parameters and partial sums that a configuration adds for a token; half of phi is cached."""
    phi, splits = 4.0 * spec.n * spec.channels * spec.logits, tile.get("SPLITS", 1)
    if kernel in ("project", "both"):
        return phi / tile["BT"] / 2 + 8.0 * splits * spec.logits
    if kernel == "streams":
        pieces = math.ceil(spec.channels / tile["BC"])
        return (
            8.0 * pieces * (spec.n + spec.n**2) * spec.mixes + 2 * phi * splits / max(tokens, 1) + phi / tile["BT"] / 2
        )
    return 0.0
