"""Sequence parallel: every process has other tokens of the same sequences, and the same mHC parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mhc_compile.distributed.sharding import keeps_hooks
from mhc_compile.errors import ShardedParametersError
from mhc_compile.model.phase import sites_of


def sum_gradients(model: nn.Module, group: Any) -> None:
    """Sum the gradients of mHC parameters over processes that have other tokens of the same sequences.

    Coefficients are per token, so streams that are sharded over the sequence need no communication forward; but each
    process finds the gradients of its own tokens only. Where streams are whole on every process, as in tensor parallel
    without sequence parallel, gradients are whole as well, and this is not to be called. Where the residual stream is a
    DTensor, the compiled graph sums these gradients itself, unless this was called. Call it once, before the first step
    and behind `shard_sites`.

    Args:
        model: an upgraded model.
        group: the processes, a `DeviceMesh` of one dimension or a process group.

    Raises:
        NotUpgradedError: the model holds no mHC parameters.
        ShardedParametersError: FSDP2 has sharded sites with their layers, not by `shard_sites`.
    """
    sites = sites_of(model)
    processes = group.get_group() if hasattr(group, "get_group") else group

    def add_up(grad: Tensor) -> None:
        torch.distributed.all_reduce(grad, group=processes)

    def summed(grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        add_up(total)
        return total

    sharded: Any = next(iter(sites), None)
    in_one_group = hasattr(sharded, "set_all_reduce_hook")  # of FSDP2's
    late = None if in_one_group else next((site for site in sites if site.is_sharded), None)
    if late is not None:
        raise ShardedParametersError(f"the parameters of site {late.path!r} are sharded with their layer")
    for site in sites:
        site.sums_gradients = True
    if in_one_group:
        sharded.set_all_reduce_hook(add_up)
        return
    for site in sites:
        keeps_hooks(site)
        for parameter in site.parameters():
            parameter.register_hook(summed)
