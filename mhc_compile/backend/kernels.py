"""Generated kernels for a graph's sites: on which devices, what is said where there are none, which files they are."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping

import torch
from torch import fx

from mhc_compile import errors
from mhc_compile.codegen import Spec, generate
from mhc_compile.codegen.runtime import build, dispatch, interpreter, spec_of_call
from mhc_compile.codegen.runtime.support import support
from mhc_compile.config import Config
from mhc_compile.errors import KernelError
from mhc_compile.passes.fuse_seams import LeftOut
from mhc_compile.passes.graph.walk import devices, value

log = logging.getLogger(__name__)


def enable(config: Config, gm: fx.GraphModule) -> frozenset[str]:
    """Return the types of the devices whose sites get generated kernels, and make these known to torch.

    Where something is missing on a GPU, one warning says what, and the graph runs without.

    Args:
        config: its `kernels` decides.
        gm: a graph whose nodes have example values.

    Raises:
        KernelError: `kernels="triton"`, and no tensor of the graph is on a device that can run them.
    """
    found = support(config.kernels, devices(gm))
    if config.kernels == "triton" and (found.lacking or not found.types):
        raise KernelError(
            f"kernels='triton', but {found.lacking or found.cpu or 'its graph computes nothing'}; kernels='auto' uses"
            " generated kernels where they can run"
        )
    if found.lacking:
        warn(f"generated kernels are not used, at the price of more memory traffic: {found.lacking}")
    for kind in found.types:
        if kind == "cpu":
            interpreter.mend()
        dispatch.register(kind.upper())
    return found.types


def name_sites(gm: fx.GraphModule) -> None:
    """Write into the files of generated kernels which sites of a rewritten graph they serve."""
    served: dict[Spec, list[str]] = {}
    for op in ("enter", "seam", "leave", "seam_in_block", "leave_in_block"):
        for node in gm.graph.find_nodes(op="call_function", target=getattr(torch.ops.mhc, op).default):
            for spec in spec_of_call.specs(op, *fx.map_arg(node.args, value)):
                served.setdefault(spec, []).append(node.meta["mhc_site"])
    for spec, sites in served.items():
        build.keep_file(generate(spec), spec.name, sites)


def report(config: Config, unfused: Mapping[str, str]) -> None:
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


def tell(left_out: Iterable[LeftOut]) -> None:
    """Log which norms and ends of branches stay outside of kernels, and why (TORCH_LOGS="mhc_compile" shows it)."""
    for site, part, _, text, source in left_out:
        log.info("%s: the branch's %s stays outside of the kernel: %s (%s)", site, part, text, source)


@functools.cache
def warn(text: str) -> None:
    """Warn once per process and text."""
    errors.warn(text)
