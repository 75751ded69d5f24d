"""liger-kernel: LigerMHC's three ops. Sinkhorn from softmax with eps; phi in the streams' dtype, as its docs advise."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.kernels.peers import library
from bench.kernels.timing.sites import EPS, ITERS, Contender, Shape, after_read
from mhc_compile.codegen.runtime.dtypes import TORCH


def contender(shape: Shape, device: str) -> Contender:
    """Return a site of liger-kernel."""
    ops, version = library.imported("liger-kernel", "liger_kernel.transformers.functional", device)
    library.require(2 <= shape.n <= 16, "takes 2 to 16 streams")
    dtype = TORCH[shape.dtype]
    wide = shape.n * shape.channels
    phi = library.random((wide, shape.logits), device, dtype, wide**-0.5)
    bias = library.random((shape.logits,), device)
    alphas = [torch.tensor(value, device=device, requires_grad=True) for value in (1.0, 0.9, 1.1)]
    weight = library.weight(shape, device, dtype)
    options = {"allow_fp32": dtype == torch.float32, "tmax": ITERS, "rms_eps": EPS}

    def run(x: Tensor, f: Tensor, post: Tensor, res: Tensor) -> tuple[Tensor, ...]:
        pre, post, res = ops.liger_mhc_coeffs(x, phi, bias, *alphas, **options)
        u = after_read(ops.liger_mhc_pre(x, pre), weight)
        return ops.liger_mhc_post_res(x, f, post, res), u

    own = [phi, bias, *alphas, *([] if weight is None else [weight])]
    return Contender(run, own, f"{version}, phi {shape.dtype}, {ITERS} iterations")
