"""hyper-connections: its mHCv2 module, whose coefficients come from each stream alone; only Sinkhorn is in Triton.

The gradient of its Triton Sinkhorn is that of a fixed point, not of the iterations that were run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.kernels.peers import library
from bench.kernels.timing.sites import ITERS, Contender, Shape, after_read
from mhc_compile.codegen.runtime.dtypes import TORCH


def contender(shape: Shape, device: str) -> Contender:
    """Return a site of hyper-connections."""
    library_, version = library.imported("hyper-connections", "hyper_connections.mHCv2", device)
    site = library_.mHC(
        shape.n, dim=shape.channels, layer_index=0, sinkhorn_iters=ITERS, use_triton_sinkhorn=True
    ).to(device)  # fmt: skip
    with torch.no_grad():
        for parameter in site.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    weight = library.weight(shape, device, TORCH[shape.dtype])

    def run(x: Tensor, f: Tensor, post: Tensor, res: Tensor) -> tuple[Tensor, ...]:
        u, write = site(x.unsqueeze(0))
        return write(f.unsqueeze(0)), after_read(u, weight)

    own = [*site.parameters(), *([] if weight is None else [weight])]
    return Contender(run, own, f"{version}, mHCv2, Triton Sinkhorn, {ITERS} iterations")
