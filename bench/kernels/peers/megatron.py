"""megatron-core: its fused mHC, which releases up to 0.19 do not have: it lives on the development branch."""

from __future__ import annotations

import importlib

from torch import Tensor

from bench.kernels.peers import library
from bench.kernels.timing.sites import EPS, ITERS, Contender, Shape, after_read
from mhc_compile.codegen.runtime.dtypes import TORCH

_FUSED = "megatron.core.fusions.fused_mhc_kernels"
_MODULE = "megatron.core.transformer.hyper_connection"


def contender(shape: Shape, device: str) -> Contender:
    """Return a site of megatron-core; coefficients are applied in the streams' dtype, as its module does."""
    fused, version = library.imported("megatron-core", _FUSED, device)
    module = importlib.import_module(_MODULE)
    n, dtype = shape.n, TORCH[shape.dtype]
    wide = n * shape.channels
    phi = library.random((shape.logits, wide), device, scale=wide**-0.5)
    alphas, bias = [library.random((1,), device) for _ in range(3)], library.random((shape.logits,), device)
    weight = library.weight(shape, device, dtype)

    def run(x: Tensor, f: Tensor, post: Tensor, res: Tensor) -> tuple[Tensor, ...]:
        streams = x.view(-1, 1, wide)
        for_maps, for_read, for_write = module.BroadcastTensorFused.apply(streams, module.native_fused_add_3)
        maps = fused.fused_proj_rms_compute_h(for_maps.reshape(-1, wide), phi, *alphas, bias, n, EPS, EPS)
        pre, post, logits = (t.view(-1, 1, *shape_) for t, shape_ in zip(maps, ((n,), (n,), (n, n)), strict=False))
        res = fused.fused_sinkhorn(logits, ITERS, EPS)
        pre, post, res = (t.to(dtype) for t in (pre, post, res))
        u = fused.fused_h_aggregate(for_read.view(-1, 1, n, shape.channels), pre)
        new = fused.fused_h_post_bda(res, for_write.view(-1, 1, n, shape.channels), post, f.unsqueeze(1), None)
        return new, after_read(u, weight)

    own = [phi, *alphas, bias, *([] if weight is None else [weight])]
    return Contender(run, own, f"{version}, {ITERS} iterations")
