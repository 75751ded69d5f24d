"""The most memory that something needs while it runs: the resident set of this process, or a GPU's allocations."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

# For glibc, in a process that measures its resident set: what is freed has to leave it at once, or the peak is that of
# the allocator. Blocks from this size on are mappings of their own, unmapped when freed; naming a size keeps glibc
# from raising it by itself, up to 32 MiB, whenever a larger one is freed. One arena, with nothing spare at its top:
# what one thread frees, another finds. It costs page faults, so nothing is timed in such a process.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 16),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 16),
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_ARENA_MAX": "1",
    "THP_MEM_ALLOC_ENABLE": "0",  # torch's own request for huge pages
}
_PR_SET_THP_DISABLE = 41
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Gauge(Protocol):
    """Where bytes are read; `peak` is the most since `restart`."""

    def settle(self) -> None:
        """Give back what is free."""

    def now(self) -> int:
        """Return the bytes in use."""

    def restart(self) -> None:
        """Forget the peak."""

    def peak(self) -> int:
        """Return the most bytes since."""


class Resident:
    """The resident set of this process, as Linux counts it; start the process with ENVIRONMENT."""

    def __init__(self) -> None:
        if not os.access(_CLEAR, os.W_OK):
            raise OSError(f"the peak of a CPU's memory is read from Linux, which lets a process write to {_CLEAR}")
        self._libc = ctypes.CDLL(None)
        # Huge pages are resident as a whole as soon as a byte of them is written.
        self._libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)

    def settle(self) -> None:
        """Collect garbage, the compiler's above all, and give free pages back."""
        gc.collect()
        with contextlib.suppress(AttributeError):  # glibc's own
            self._libc.malloc_trim(0)

    def now(self) -> int:
        """Return the resident set."""
        return status("VmRSS", _STATUS.read_text())

    def restart(self) -> None:
        """Set the high-water mark to the present."""
        _CLEAR.write_text("5")  # see proc_pid_clear_refs(5)

    def peak(self) -> int:
        """Return the high-water mark."""
        return status("VmHWM", _STATUS.read_text())


class Cuda:
    """What torch's allocator has handed out on a GPU."""

    def __init__(self, device: str) -> None:
        self.device = device

    def settle(self) -> None:
        """Collect garbage."""
        gc.collect()
        torch.cuda.synchronize(self.device)

    def now(self) -> int:
        """Return the bytes of all live tensors."""
        return torch.cuda.memory_allocated(self.device)

    def restart(self) -> None:
        """Set the peak to the present."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        """Return the most bytes since."""
        return torch.cuda.max_memory_allocated(self.device)


def gauge(device: str) -> Gauge:
    """Return where the memory of a device is read."""
    return Cuda(device) if device.startswith("cuda") else Resident()


def status(field: str, text: str) -> int:
    """Return the bytes of a field of /proc/self/status, which has them in kB."""
    found = re.search(rf"^{field}:\s*(\d+) kB$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"no {field} in the status of the process")
    return int(found[1]) * 1024


def peaks(of: Gauge, step: Callable[[], object], rest: Callable[[], object], rounds: int) -> list[tuple[int, int]]:
    """Return the bytes before a step and its peak, several times; `rest` drops what the step before has left."""
    measured = []
    for _ in range(rounds):
        rest()
        of.settle()
        before = of.now()
        of.restart()
        step()
        measured.append((before, of.peak()))
    return measured
