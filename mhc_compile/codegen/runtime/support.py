"""On which devices generated kernels can run. Asking changes nothing; `dispatch.register` makes them known to torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import torch

from mhc_compile.codegen.runtime import build, cache, interpreter
from mhc_compile.errors import CacheError, MissingDependencyError

OLDEST_GPU = (8, 0)


class Support(NamedTuple):
    """Which of some devices run generated kernels.

    Attributes:
        types: the types of the devices that do, such as "cuda".
        lacking: why a device other than the CPU does not, in a few words; None where each does.
        cpu: the same for the CPU.
    """

    types: frozenset[str]
    lacking: str | None
    cpu: str | None


def support(kernels: str, devices: Iterable[torch.device]) -> Support:
    """Return which devices get generated kernels under `Config.kernels`.

    With "auto" those are CUDA devices. On a CPU kernels run in Triton's interpreter only (TRITON_INTERPRET=1), for
    tests, and only if "triton" asks for them. On "meta" nothing runs, so nothing is lacking.
    """
    if kernels == "reference":
        return Support(frozenset(), None, None)
    reasons = {device: why_not(device) for device in devices if device.type != "meta"}
    types = {device.type for device, reason in reasons.items() if reason is None}
    if kernels == "auto":
        types.discard("cpu")
    lacking = (reason for device, reason in reasons.items() if reason and device.type != "cpu")
    cpu = (reason for device, reason in reasons.items() if reason and device.type == "cpu")
    return Support(frozenset(types), next(lacking, None), next(cpu, None))


def why_not(device: torch.device) -> str | None:
    """Return why generated kernels cannot run on a device, in a few words; None where they can."""
    if device.type == "cpu":
        if os.environ.get(interpreter.VARIABLE, "0") != "1" or not interpreter.is_on():
            return "generated kernels run on GPUs, not on a CPU"
    elif device.type != "cuda":
        return f"generated kernels run on CUDA devices, not on {device.type!r}"
    elif torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST_GPU:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability {OLDEST_GPU[0]}.{OLDEST_GPU[1]}"
    try:
        build.require_triton()
        cache.check()
    except (MissingDependencyError, CacheError) as error:
        return str(error)
    return None
