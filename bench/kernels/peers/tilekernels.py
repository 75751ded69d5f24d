"""tile-kernels 1.x: its mHC modeling layer. Four streams, bf16, phi in tf32; gradients add up in place.

Later versions have no modeling layer for mHC (the projection went to another library) and need torch 2.13.
"""

from __future__ import annotations

from torch import Tensor

from bench.kernels.peers import library
from bench.kernels.timing.sites import EPS, ITERS, Contender, Shape, after_read
from mhc_compile.codegen.runtime.dtypes import TORCH


def contender(shape: Shape, device: str) -> Contender:
    """Return a site of tile-kernels."""
    functional, version = library.imported("tile-kernels", "tile_kernels.modeling.mhc.functional", device)
    library.require(shape.n == 4, "only four streams are guaranteed to work")
    library.require(shape.dtype == "bf16", "takes bf16 only")
    library.require(shape.channels % 128 == 0, "takes multiples of 128 features")
    wide = shape.n * shape.channels
    phi = library.random((shape.logits, wide), device, scale=wide**-0.5)
    scale, base = library.random((3,), device), library.random((shape.logits,), device)
    weight = library.weight(shape, device, TORCH[shape.dtype])
    options = {"norm_eps": EPS, "post_mult_value": 2.0, "pre_eps": 0.0, "sinkhorn_repeat": ITERS}

    def run(x: Tensor, f: Tensor, post: Tensor, res: Tensor) -> tuple[Tensor, ...]:
        x, f = x.unsqueeze(0), f.unsqueeze(0)
        u, (post, res) = functional.mhc_pre(x, phi, scale, base, mhc_mult=shape.n, **options)
        return functional.mhc_post(f, x, post, res), after_read(u, weight)

    own = [phi, scale, base, *([] if weight is None else [weight])]
    return Contender(run, own, f"{version}, {ITERS} iterations, gradients of x added up in place")
