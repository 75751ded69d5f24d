"""On which devices generated kernels can run. Asking changes nothing; `dispatch.register` makes them known to torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import torch

from mhc_compile.codegen.runtime import build, cache, cpu, dispatch, interpreter
from mhc_compile.errors import CacheError, MissingDependencyError

OLDEST_GPU = (8, 0)


class Support(NamedTuple):
    """Which of some devices run generated kernels.

    Attributes:
        types: the types of the devices that do, such as "cuda".
        lacking: why a device does not, in a few words; None where each does.
    """

    types: frozenset[str]
    lacking: str | None


def support(kernels: str, devices: Iterable[torch.device]) -> Support:
    """Return which devices get generated kernels under `Config.kernels`.

    With "auto" those are CUDA devices and CPUs. With "triton" kernels run on a CPU in Triton's interpreter only
    (TRITON_INTERPRET=1), for tests, where "auto" leaves the CPU alone. On "meta" nothing runs, so nothing is lacking.
    """
    if kernels == "reference":
        return Support(frozenset(), None)
    leave_out = {"meta", "cpu"} if kernels == "auto" and _interprets() else {"meta"}
    reasons = {device: _why_not(kernels, device) for device in devices if device.type not in leave_out}
    types = {device.type for device, reason in reasons.items() if reason is None}
    # a graph on a GPU has a few tensors on the CPU, whatever it computes
    main = {device: reason for device, reason in reasons.items() if device.type != "cpu"} or reasons
    return Support(frozenset(types), next(filter(None, main.values()), None))


def _why_not(kernels: str, device: torch.device) -> str | None:
    if kernels == "triton" or (kernels == "auto" and device.type != "cpu"):
        return why_not(device)
    if device.type != "cpu":
        return f"kernels in C++ run on a CPU, not on {device.type!r}"
    if dispatch.is_registered("CPU"):
        return "in this process Triton's interpreter runs the ops on the CPU"
    return cpu.why_not()


def _interprets() -> bool:
    return os.environ.get(interpreter.VARIABLE, "0") == "1" and interpreter.is_on()


def why_not(device: torch.device) -> str | None:
    """Return why kernels in Triton cannot run on a device, in a few words; None where they can."""
    if device.type == "cpu":
        if not _interprets():
            return "kernels in Triton run on GPUs, not on a CPU"
        if cpu.is_registered():
            return "in this process kernels in C++ run the ops on the CPU"
    elif device.type != "cuda":
        return f"kernels in Triton run on CUDA devices, not on {device.type!r}"
    elif torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST_GPU:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability {OLDEST_GPU[0]}.{OLDEST_GPU[1]}"
    try:
        build.require_triton()
        cache.check()
    except (MissingDependencyError, CacheError) as error:
        return str(error)
    return None
