"""On which devices a graph's sites run generated kernels: `Config.kernels`, and what is there to run them."""

from __future__ import annotations

import functools
import os
import warnings

import torch
from torch import fx

from mhc_compile.codegen import Spec, apart, build, dispatch, generate, interpreter
from mhc_compile.config import Config
from mhc_compile.errors import CacheError, KernelError, MHCWarning, MissingDependencyError
from mhc_compile.passes.base import value

OLDEST_GPU = (8, 0)


def devices(config: Config, gm: fx.GraphModule) -> frozenset[str]:
    """Return the types of the devices whose sites get generated kernels, and make these known to torch.

    With `kernels="auto"` those are CUDA devices; where something is missing there, one warning says what, and the
    graph runs without. On a CPU kernels run in Triton's interpreter only (TRITON_INTERPRET=1), for tests.

    Args:
        config: its `kernels` decides.
        gm: a graph whose nodes have example values.

    Raises:
        KernelError: `kernels="triton"`, and no tensor of the graph is on a device that can run them.
    """
    if config.kernels == "reference":
        return frozenset()
    found = {tensor.device for node in gm.graph.nodes if (tensor := value(node)) is not None}
    reasons = {device: why_not(device) for device in found}
    fit = {device.type for device, reason in reasons.items() if reason is None}
    if config.kernels == "auto":
        fit.discard("cpu")
    told = next((reason for device, reason in reasons.items() if reason and device.type != "cpu"), None)
    if config.kernels == "triton" and (told or not fit):
        raise KernelError(
            f"kernels='triton', but {told or next(iter(reasons.values()), 'the graph has no tensors')}; kernels='auto'"
            " uses generated kernels where they can run"
        )
    if told:
        warn(f"generated kernels are not used, at the price of more memory traffic: {told}")
    return frozenset(fit)


def possible(config: Config, gm: fx.GraphModule) -> frozenset[str]:
    """Return the same for a report, which refuses nothing."""
    try:
        return devices(config, gm)
    except KernelError:
        return frozenset()


@functools.cache
def why_not(device: torch.device) -> str | None:
    """Return why generated kernels cannot run on a device, in a few words; None where they can.

    Where they can, they are registered as the ops' implementation on such devices.
    """
    if device.type == "cpu":
        if os.environ.get(apart.VARIABLE, "0") != "1" or not interpreter.is_on():
            return "generated kernels run on GPUs, not on a CPU"
        interpreter.mend()
    elif device.type != "cuda":
        return f"generated kernels run on CUDA devices, not on {device.type!r}"
    elif torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST_GPU:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability {OLDEST_GPU[0]}.{OLDEST_GPU[1]}"
    try:
        dispatch.register("CPU" if device.type == "cpu" else "CUDA")
    except (MissingDependencyError, CacheError) as error:
        return str(error)
    return None


def name_sites(gm: fx.GraphModule) -> None:
    """Write into the files of generated kernels which sites of a rewritten graph they serve."""
    served: dict[Spec, list[str]] = {}
    for op in ("enter", "seam", "leave", "seam_in_block", "leave_in_block"):
        for node in gm.graph.find_nodes(op="call_function", target=getattr(torch.ops.mhc, op).default):
            for spec in dispatch.specs(op, *fx.map_arg(node.args, value)):
                served.setdefault(spec, []).append(node.meta["mhc_site"])
    for spec, sites in served.items():
        build.note(generate(spec), spec.name, sites)


def report(config: Config, unfused: dict[str, str]) -> None:
    """Say why sites on a GPU have no kernel.

    Raises:
        KernelError: `kernels="triton"`.
    """
    if not unfused:
        return
    site, reason = next(iter(unfused.items()))
    text = f"{reason} ({len(unfused)} sites, the first {site!r})"
    if config.kernels == "triton":
        raise KernelError(f"kernels='triton', but {text}; kernels='auto' runs such sites as the reference")
    warn(f"sites run as the reference, at the price of more memory traffic: {text}")


@functools.cache
def warn(text: str) -> None:
    """Warn once per process and text."""
    warnings.warn(text, MHCWarning, stacklevel=2)
