"""Generated kernels for a graph's sites: on which devices, what is said where there are none, which files they are."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from mhc_compile import errors
from mhc_compile.codegen import Spec, generate
from mhc_compile.codegen.runtime import build, cpu, dispatch, interpreter, spec_of_call
from mhc_compile.codegen.runtime.support import support
from mhc_compile.config import Config
from mhc_compile.errors import CacheError, KernelError, MissingDependencyError
from mhc_compile.ops import limits
from mhc_compile.passes.fuse_seams import LeftOut
from mhc_compile.passes.graph.walk import devices, value

log = logging.getLogger(__name__)
LANGUAGES = ("triton", "cpp")


def enable(config: Config, gm: fx.GraphModule) -> frozenset[str]:
    """Return the types of the devices whose sites get generated kernels, and make these known to torch.

    Where something is missing, one warning says what, and the graph runs without.

    Args:
        config: its `kernels` decides.
        gm: a graph whose nodes have example values.

    Raises:
        KernelError: `kernels` names a language, and no tensor of the graph is on a device that can run it.
    """
    found = support(config.kernels, devices(gm))
    types, lacking = set(found.types), found.lacking
    if "cpu" in types and config.kernels != "triton":
        lacking = _enable_cpp(config, gm, types) or lacking
    if config.kernels in LANGUAGES and (lacking or not types):
        raise KernelError(
            f"kernels={config.kernels!r}, but {lacking or 'its graph computes nothing'}; kernels='auto' uses generated"
            " kernels where they can run"
        )
    if lacking:
        warn(f"generated kernels are not used, at the price of more memory traffic: {lacking}")
    for kind in types - ({"cpu"} if config.kernels != "triton" else set()):
        if kind == "cpu":
            interpreter.mend()
        dispatch.register(kind.upper())
    return frozenset(types)


def _enable_cpp(config: Config, gm: fx.GraphModule, types: set[str]) -> str | None:
    """Make the kernels for a graph on the CPU known; where they cannot be had, drop its type and return why."""
    tensors = [tensor for node in gm.graph.nodes if (tensor := value(node)) is not None and tensor.device.type == "cpu"]
    dtypes = {tensor.dtype for tensor in tensors if tensor.dim() > 1}
    fit = [d for d in dtypes if limits.why_not(config.streams, config.connection, config.projection, d, "cpu") is None]
    if not dtypes:  # a number or an index beside what a GPU computes
        types.discard("cpu")
        return None
    try:
        cpu.register(config.streams, fit)
    except (MissingDependencyError, CacheError) as error:
        types.discard("cpu")
        return str(error)
    return None


def name_sites(gm: fx.GraphModule) -> None:
    """Write into the files of generated kernels which sites of a rewritten graph they serve."""
    served: dict[Spec, list[str]] = {}
    for op in ("enter", "seam", "leave", "seam_in_block", "leave_in_block"):
        for node in gm.graph.find_nodes(op="call_function", target=getattr(torch.ops.mhc, op).default):
            args = fx.map_arg(node.args, value)
            for spec in spec_of_call.specs(op, *args) if dispatch.is_registered(_key(args)) else ():
                served.setdefault(spec, []).append(node.meta["mhc_site"])
    for spec, sites in served.items():
        build.keep_file(generate(spec), spec.name, sites)


def _key(args: Any) -> str:
    """Return the dispatch key of an op's arguments."""
    return next(arg.device.type.upper() for arg in tree_leaves(args) if isinstance(arg, torch.Tensor))


def report(config: Config, unfused: Mapping[str, str], types: frozenset[str]) -> None:
    """Say why sites on devices of some types have no kernel; on a CPU in the log, unless a language was asked for.

    Raises:
        KernelError: `kernels` names a language.
    """
    if not unfused:
        return
    site, reason = next(iter(unfused.items()))
    text = f"{reason} ({len(unfused)} sites, the first {site!r})"
    if config.kernels in LANGUAGES:
        raise KernelError(f"kernels={config.kernels!r}, but {text}; kernels='auto' runs such sites as the reference")
    text = f"sites run as the reference, at the price of more memory traffic: {text}"
    if types == {"cpu"}:
        log.info("%s", text)
    else:
        warn(text)


def tell(left_out: Iterable[LeftOut]) -> None:
    """Log which norms and ends of branches stay outside of kernels, and why (TORCH_LOGS="mhc_compile" shows it)."""
    for site, part, _, text, source in left_out:
        log.info("%s: the branch's %s stays outside of the kernel: %s (%s)", site, part, text, source)


@functools.cache
def warn(text: str) -> None:
    """Warn once per process and text."""
    errors.warn(text)
