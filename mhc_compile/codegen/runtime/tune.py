"""Tiles of a launch: the default ones, or those that a tuning run on this device found fastest, kept on disk.

Nothing is tuned unless MHC_TUNE is set: then each kernel is, once per device, file and power of two of tokens, at its
first call. Several processes of one group tune nothing, since each would find tiles of its own and so sums of another
order: they take what one process has found before.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from mhc_compile.codegen.runtime import cache, space
from mhc_compile.codegen.runtime.space import Device
from mhc_compile.codegen.spec import Spec

VARIABLE = "MHC_TUNE"
TRIES = 8  # configurations of each kernel that are timed

Tiles = dict[str, dict[str, int]]
Clock = Callable[[Callable[[], object]], float]
_LOG = logging.getLogger("mhc_compile.codegen")
_KNOWN: dict[str, Tiles] = {}


def tiles(module: ModuleType, direction: str, tensors: Sequence[Tensor], tokens: int) -> Tiles:
    """Return the tiles for a call of the module's `forward` or `backward`.

    Args:
        module: a generated one.
        direction: which function.
        tensors: its arguments.
        tokens: how many there are.
    """
    device = tensors[0].device
    default: Tiles = module.TILES
    if device.type != "cuda" or not tokens:
        return default
    name = key(module, direction, torch.cuda.get_device_name(device), tokens)
    if name not in _KNOWN:
        found = read(name, default)
        if found is None and asked() and not torch.cuda.is_current_stream_capturing():
            found = tune(module, direction, tensors, tokens, of(device), _median)
            cache.keep(name, json.dumps(found, indent=1))
        _KNOWN[name] = found or default
    return _KNOWN[name]


def asked() -> bool:
    """Return whether the user wants kernels tuned at their first call, and this process is alone."""
    return os.environ.get(VARIABLE, "0") not in ("", "0") and not _is_one_of_several()


def _is_one_of_several() -> bool:
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def key(module: ModuleType, direction: str, device: str, tokens: int) -> str:
    """Return the name of the file that holds the result: the module's name has the hash of its text in it."""
    stem = module.__name__.rpartition(".")[2]
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return f"{stem}_{direction}_{slug}_{1 << math.ceil(math.log2(tokens))}.json"


def read(name: str, default: Tiles) -> Tiles | None:
    """Return what an earlier run found; None where there is nothing, or something else than tiles."""
    try:
        found = json.loads(cache.read(cache.directory() / name) or "null")
        sane = {str(k): {str(a): int(b) for a, b in tile.items()} for k, tile in found.items()}
    except (ValueError, AttributeError, TypeError):
        return None
    return sane if sane.keys() <= {*default, "both", "back"} else None


def of(device: torch.device) -> Device:
    """Describe a CUDA device to the model."""
    facts = torch.cuda.get_device_properties(device)
    return Device(facts.multi_processor_count, facts.max_threads_per_multi_processor // facts.warp_size)


def tune(
    module: ModuleType, direction: str, tensors: Sequence[Tensor], tokens: int, device: Device, clock: Clock
) -> Tiles:
    """Time the most promising configurations, kernel by kernel, and return the fastest.

    Args:
        module: a generated one.
        direction: which function.
        tensors: its arguments.
        tokens: how many there are.
        device: for the model that orders the configurations.
        clock: times a call, in any unit.
    """
    spec = Spec.of(module.SPEC)
    best: Tiles = {name: dict(tile) for name, tile in module.TILES.items()}
    least = _time(module, direction, tensors, best, clock)
    for kernel in kernels(spec, direction):
        for tile in space.candidates(spec, kernel, tokens, device)[:TRIES]:
            tried = {**best, kernel: tile}
            taken = _time(module, direction, tensors, tried, clock)
            if taken < least:
                best, least = tried, taken
    _LOG.info("tuned %s %s for %d tokens: %s", spec.name, direction, tokens, best)
    return best


def kernels(spec: Spec, direction: str) -> tuple[str, ...]:
    """Return the kernels of a direction in the order in which they are tuned; the one launch comes last, if at all."""
    if spec.op == "replay":
        return ("replay",)
    if spec.op == "leave":
        return ("leave",) if direction == "forward" else ("leave_backward",)
    if direction == "backward":
        return ("coefs", "streams", "back") if spec.reads else ("coefs", "streams")
    return ("project", "read", "both") if spec.reads else ("project", "read")


def _time(module: ModuleType, direction: str, tensors: Sequence[Tensor], chosen: Tiles, clock: Clock) -> float:
    """Return how long a call takes; infinity where a configuration does not fit the device."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        return clock(lambda: getattr(module, direction)(*tensors, tiles=chosen))
    except (OutOfResources, CompilationError, PTXASError):
        return math.inf


def _median(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    taken: float = do_bench(call, warmup=5, rep=20, return_mode="median")
    return taken
