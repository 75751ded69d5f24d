"""FSDP2: the parameters of all sites form a group of their own, in fp32 whatever the policy of the layers is."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from mhc_compile.errors import ShardedParametersError
from mhc_compile.model.phase import sites_of
from mhc_compile.model.sites import SiteModule

_WITH_HOOKS: weakref.WeakSet[SiteModule] = weakref.WeakSet()  # on parameters, which FSDP2 replaces


def shard_sites(model: nn.Module, **kwargs: Any) -> None:
    """Shard all mHC parameters of a model as one group; call it before `fully_shard` on its layers and on itself.

    FSDP2 gathers parameters where a module's forward starts, but nobody calls the forward of a site. So every call of
    the model gathers them all once, and its backward shards them again.

    Args:
        model: an upgraded model.
        kwargs: for `fully_shard`, such as mesh; `mp_policy` is fp32 and `reshard_after_forward` is False.

    Raises:
        NotUpgradedError: the model holds no mHC parameters.
        ShardedParametersError: the sites are sharded with their layers already; or, at a call of the model, the model
            itself was not sharded afterwards.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    sites = sites_of(model)
    if not sites:
        return
    late = next((site for site in sites if site.is_sharded), None)
    if late is not None:
        raise ShardedParametersError(f"the parameters of site {late.path!r} were sharded before shard_sites was called")
    if not _WITH_HOOKS.isdisjoint(sites):
        raise ShardedParametersError("sum_gradients was called before shard_sites, which would undo it")
    fully_shard(list[nn.Module](sites), mp_policy=MixedPrecisionPolicy(), **{**kwargs, "reshard_after_forward": False})

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
    def gather(*_: Any) -> None:
        first = sites[0]
        if not isinstance(model, FSDPModule) or not isinstance(first, FSDPModule):
            raise ShardedParametersError("shard_sites was called, but the model itself is not sharded")
        first.reshard()  # a call without backward may have left values from before an optimizer's step
        first.unshard()

    model.register_forward_pre_hook(gather)


def keeps_hooks(site: SiteModule) -> None:
    """Remember that hooks are on a site's parameters, so that it is not sharded any more."""
    _WITH_HOOKS.add(site)
