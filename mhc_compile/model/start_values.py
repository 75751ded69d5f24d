"""Values of a site's parameters at which the rewritten model equals the original and its streams can part.

Let the entry copy x, let reads and the rows of H_res sum to 1, let writes be 1 and phi 0. Then every stream is the
original residual stream, whatever stands between the adds, and a readout gives it back: the mean, or a head whose
weights sum to 1. H_pre and H_res are left free by this. `home` uses that: every site reads mostly from a stream of its
own, so the gradients of the streams differ from the first step on, where a symmetric start would keep them equal for
ever.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor

from mhc_compile.config import Config
from mhc_compile.ops import connections, projections
from mhc_compile.ops.connections import Maps, Start

PAPER_WIDTH = 8192  # a typical n C of the paper's models, for which it gives alpha = 0.01


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a site stands: the k-th (from 0) of the `length` sites of its region."""

    k: int
    length: int


def home(place: Place, n: int) -> Start:
    """Return the start of a site with n streams, whose home is stream k mod n.

    Read weights are (n+1)/2n for the home stream and (n-d)/n^2 for the stream at distance d from it; write weights are
    1. The off-diagonal q of H_res is so small that (1 - nq)^L is at least about one half, and so large that logits
    stay below 8, beyond which no gradient is left.
    """
    distance = (torch.arange(n, dtype=torch.float64) - place.k) % n
    pre = (n - distance) / n**2
    pre[place.k % n] = (n + 1) / (2 * n)
    q = max(2.0**-11, 2.0 ** -math.ceil(math.log2(2 * n * place.length)))
    return Start(pre, torch.ones(n, dtype=torch.float64), q, place.k % n)


def bias(place: Place, config: Config) -> Tensor:
    """Return the bias at the start, fp32 and on the CPU: `[n^2 + 2n]` for "mhc" with the Sinkhorn projection."""
    with torch.device("cpu"):  # whatever the default device: under "meta" there would be no values
        start = home(place, config.streams)
        values = connections.get(config.connection).start_bias(start, Maps.of(config)).float()
        if config.connection == "mhc" and config.projection == "sinkhorn":
            n = config.streams
            beta = _exact_logit(n, start.q, config.sinkhorn_iters)
            values[2 * n :] = beta * torch.eye(n, dtype=torch.float32).flatten()
    return values


def head_bias(config: Config) -> Tensor:
    """Return the bias at which a learned readout weighs all streams alike, `[n]`, fp32 and on the CPU."""
    with torch.device("cpu"):
        n = config.streams
        start = dataclasses.replace(home(Place(0, 1), n), pre=torch.full((n,), 1 / n, dtype=torch.float64))
        return connections.get(config.connection).start_bias(start, Maps.of(config))[:n].float()


@functools.lru_cache(maxsize=256)
def _exact_logit(n: int, q: float, iters: int) -> float:
    """Return the fp32 logit near ln((1-(n-1)q)/q) whose projection, computed in fp32, comes nearest to the target.

    Where the diagonal is exactly 1-(n-1)q, sums over equal streams round to the original value, also in 16 bits. That
    is so for 2 streams, for 4 in regions of at least 2 sites, and for 8 in regions of at least 3. In shorter regions
    the n - 1 entries q, each off by an ulp, are too much: one entry of the result in some hundreds is then off by an
    ulp of 16 bits.
    """
    sinkhorn = projections.Sinkhorn()
    center = sinkhorn.start(n, q)[0].float()
    steps = torch.arange(-16, 17, dtype=torch.int32)
    logits = (center.view(torch.int32) + steps).view(torch.float32)
    images = sinkhorn.run(logits[:, None] * torch.eye(n, dtype=torch.float32).flatten(), n, iters).double()
    diagonal = images.diagonal(dim1=-2, dim2=-1) - (1 - (n - 1) * q)
    error = 1e3 * diagonal.abs().amax(-1) + (images[:, 0, -1] - q).abs()
    return float(logits[error.argmin()])


def alpha(config: Config, channels: int) -> float:
    """Return the gate of the dynamic part at the start."""
    if config.alpha == "auto":
        return min(1.0, 0.01 * PAPER_WIDTH / (config.streams * channels))
    return float(config.alpha)
