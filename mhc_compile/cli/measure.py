"""Measuring: interleaved step times, bytes saved for backward, cold caches, and where it all ran.

Times are wall seconds, sizes are bytes. Nothing passes or fails by a time: it is reported.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mhc_compile.errors import MissingDependencyError

Step = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """What a step cost over the rounds of an interleaved run."""

    median: float  # seconds
    ratio: float  # median over the rounds of (seconds / the baseline's seconds in that round)
    ratio_low: float  # lower quartile of the same ratios
    ratio_high: float  # upper quartile
    ratio_best: float  # the fastest sample over the baseline's fastest: what a busy machine spoils least
    samples: tuple[float, ...]  # seconds, one per round


def summarize(samples: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Timing]:
    """Medians (seconds) and ratios to `baseline` of samples taken round by round.

    Ratios are paired within a round, so that what slows the machine for a while slows both sides.
    """
    base = samples[baseline]
    timings = {}
    for name, seconds in samples.items():
        ratios = [mine / theirs for mine, theirs in zip(seconds, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        best = min(seconds) / min(base)
        timings[name] = Timing(statistics.median(seconds), middle, low, high, best, tuple(seconds))
    return timings


def interleave(
    steps: Mapping[str, Step], *, rounds: int = 20, warmup: int = 3, baseline: str | None = None
) -> dict[str, Timing]:
    """Time every step once per round, `rounds` times, after `warmup` untimed calls of each.

    The order turns by one each round, so that no step always runs behind the same neighbour.
    `baseline` is the name that ratios refer to; the first one by default.
    """
    names = list(steps)
    for name in names:
        for _ in range(warmup):
            steps[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                samples[name].append(seconds_of(steps[name]))
    finally:
        if collecting:
            gc.enable()
    return summarize(samples, names[0] if baseline is None else baseline)


def seconds_of(step: Step) -> float:
    """Wall seconds of one call, with the accelerator's queue drained before and after."""
    _synchronize()
    start = time.perf_counter()
    step()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def saved_bytes(fn: Step, exclude: Iterable[torch.Tensor] = ()) -> int:
    """Bytes that one call of `fn` (a forward) saves for its backward.

    Each storage counts once and in full. Storages of `exclude` (pass the parameters, buffers and
    inputs) and of leaf parameters do not count: they live anyway. Call `fn` once before, so that
    it is compiled. What an autograd function keeps outside `save_for_backward` is not seen.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    # The storages themselves are kept: a freed address could be handed out and counted again.
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        origin = tensor if tensor._base is None else tensor._base
        storage = tensor.untyped_storage()
        if not isinstance(origin, torch.nn.Parameter) and storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fn()
    return sum(storage.nbytes() for storage in saved.values())


@contextlib.contextmanager
def cold_caches(*, reset: bool = True) -> Iterator[Path]:
    """Compile from nothing: an empty TORCHINDUCTOR_CACHE_DIR (yielded) and a reset Dynamo.

    The directory is removed and the variable restored at the end; what was compiled stays usable.
    `reset=False` keeps what Dynamo compiled before, to compile one model after another.
    """
    from torch._inductor.utils import fresh_cache

    if reset:
        torch._dynamo.reset()
    with fresh_cache():
        yield Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def start_compiler(device: str = "cpu") -> None:
    """Pay the compiler's one-time costs (imports, headers), which the first model would be charged.

    It compiles a small forward and backward through Inductor; every call does so again, since a
    new cache directory needs its headers again.
    """
    from torch._C._dynamo.eval_frame import reset_code

    def small(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x, -1).square().mean()

    reset_code(small.__code__)
    ones = torch.ones(64, 64, device=device, requires_grad=True)
    torch.autograd.backward(torch.compile(small)(ones))


def require(*modules: str, packages: Mapping[str, str] | None = None) -> None:
    """Check that modules are installed.

    Args:
        modules: their names.
        packages: where a module comes with a package of another name, that name.

    Raises:
        MissingDependencyError: some are not; the message names the packages of all of these, and how to get them.
    """
    missing = [(packages or {}).get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"this needs {', '.join(missing)}; install with: pip install {' '.join(missing)}")


def environment(device: str | None = None) -> dict[str, object]:
    """Versions, hardware, threads, device, date (UTC) and git revision of this run."""
    packages = ("mhc_compile", "torch", "triton", "transformers", "numpy")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "git": _git_revision(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "device": device_name(device),
    }


def device_name(device: str | None = None) -> str:
    """The GPU's name for `device` "cuda" or "cuda:1"; otherwise `device`, "cpu" by default."""
    if device is not None and device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return device or "cpu"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_revision() -> str | None:
    """The checkout's short revision, "+" behind it if files differ; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or None
    return None


def write_json(path: str | os.PathLike[str], payload: object) -> Path:
    """Write `payload` as indented JSON (paths as text), making the folder; the path comes back."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(payload, indent=2, default=str) + "\n", encoding="utf-8")
    return target
