"""Maps from streams to (H_pre, H_post, H_res). A new connection is one small class and one line in CONNECTIONS.

Every connection has the same three parameters, of its own shapes: phi (the projection), alpha (gates of the dynamic
part) and a bias stored as fixed start + learned delta. `streams -> rows -> logits y = norm(row) phi -> activate`.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

from mhc_compile.config import Config
from mhc_compile.errors import ConfigError
from mhc_compile.ops import projections
from mhc_compile.ops.projections import Projection

Triple = tuple[Tensor, Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class Maps:
    """What a connection needs to know of a site besides its parameters."""

    n: int
    projection: str = "sinkhorn"
    iters: int = 20
    fast: bool = False  # run the projection's fast form instead of its specification

    @classmethod
    def of(cls, config: Config) -> Maps:
        """Return what a Config says of it."""
        return cls(config.streams, config.projection, config.sinkhorn_iters)


@dataclasses.dataclass(frozen=True)
class Start:
    """Values at the start: read weights, write weights (both `[n]`, fp64) and the off-diagonal of H_res."""

    pre: Tensor
    post: Tensor
    q: float
    home: int


class Connection(Protocol):
    """A map from the normalised projection y of the streams to the coefficients of a site.

    Attributes:
        drift: what a site may change of the model at the start, relative to its outputs.
    """

    drift: float

    def phi_shape(self, maps: Maps, c: int) -> tuple[int, int]:
        """Return the shape `[K, m]` of phi for C features."""

    def gates(self) -> int:
        """Return how many alphas there are."""

    def rows(self, x: Tensor) -> Tensor:
        """Return the rows `[..., K]` of the streams `[..., n, C]` that are normalised and projected."""

    def activate(self, y: Tensor, alpha: Tensor, bias: Tensor, maps: Maps) -> Triple:
        """Return H_pre `[..., n]`, H_post `[..., n]` and H_res `[..., n, n]`, in plain torch."""

    def vjp(self, y: Tensor, alpha: Tensor, bias: Tensor, maps: Maps, grads: Triple) -> Triple:
        """Return the gradients of y, alpha and bias."""

    def start_bias(self, start: Start, maps: Maps) -> Tensor:
        """Return the bias (fp64) at which `activate` yields the starting values with y = 0."""


def _spread(alpha: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Repeat each gate over its part of the logits."""
    return torch.cat([alpha[i].expand(width) for i, width in enumerate(widths)])


def by_token(t: Tensor) -> Tensor:
    """Return `[T, K]` for `[..., K]`, also where there is no token axis."""
    return t.reshape(-1, t.shape[-1])


class MHC:
    """Manifold-constrained hyper-connection (arXiv 2512.24880, Eq. 7-9)."""

    drift = 0.0

    _more = 0.0  # than the sigmoid is H_pre

    def _widths(self, maps: Maps) -> tuple[int, int, int]:
        return maps.n, maps.n, self._projection(maps).width(maps.n)

    def _projection(self, maps: Maps) -> Projection:
        return projections.get(maps.projection)

    def phi_shape(self, maps: Maps, c: int) -> tuple[int, int]:
        """Return `[nC, n^2 + 2n]`; without mixing logits `[nC, 2n]`."""
        return maps.n * c, sum(self._widths(maps))

    def gates(self) -> int:
        """Return 3: alpha_pre, alpha_post, alpha_res."""
        return 3

    def rows(self, x: Tensor) -> Tensor:
        """Return vec(x), `[..., nC]`."""
        return x.flatten(-2)

    def activate(self, y: Tensor, alpha: Tensor, bias: Tensor, maps: Maps) -> Triple:
        """Return sigmoid, 2 sigmoid and the projection of `y alpha + bias` (Eq. 16-19)."""
        n = maps.n
        z = y * _spread(alpha, self._widths(maps)) + bias
        projection = self._projection(maps)
        project = projection.run if maps.fast else projection.apply
        pre = torch.sigmoid(z[..., :n])
        pre = pre + self._more if self._more else pre
        return pre, 2 * torch.sigmoid(z[..., n : 2 * n]), project(z[..., 2 * n :], n, maps.iters)

    def vjp(self, y: Tensor, alpha: Tensor, bias: Tensor, maps: Maps, grads: Triple) -> Triple:
        """Return gradients through the unrolled projection, not through its fixed point."""
        n, widths = maps.n, self._widths(maps)
        dpre, dpost, dres = grads
        gate = _spread(alpha, widths)
        z = y * gate + bias
        s = torch.sigmoid(z[..., : 2 * n])
        d = s * (1 - s) * torch.cat([dpre, 2 * dpost], -1)
        mix = self._projection(maps).vjp(z[..., 2 * n :], dres, n, maps.iters)
        dz = by_token(torch.cat([d, mix], -1))
        dalpha = torch.stack([part.sum() for part in (dz * by_token(y)).sum(0).split(widths)])
        return (dz * gate).view_as(y), dalpha, dz.sum(0)

    def start_bias(self, start: Start, maps: Maps) -> Tensor:
        """Return logits of H_pre, of H_post / 2 and the projection's start."""
        mix = self._projection(maps).start(maps.n, start.q)
        return torch.cat([torch.logit(start.pre - self._more), torch.logit(start.post / 2), mix])


class DeepSeekV4(MHC):
    """The same as DeepSeek-V4 computes it: `SMOOTH` is added to H_pre and in Sinkhorn's sums.

    So every write takes `SMOOTH` of the streams away, and the start is exact up to that: 5e-5 at 48 sites.
    """

    drift = 4 * projections.SMOOTH
    _more = projections.SMOOTH

    def _projection(self, maps: Maps) -> Projection:
        return SMOOTH_SINKHORN if maps.projection == "sinkhorn" else projections.get(maps.projection)


class HC:
    """Unconstrained hyper-connection (arXiv 2409.19606, Eq. 10-13): a static matrix plus a gated tanh, per stream."""

    drift = 0.0

    def phi_shape(self, maps: Maps, c: int) -> tuple[int, int]:
        """Return `[C, n + 2]`: read, write and mixing weights of one stream."""
        return c, maps.n + 2

    def gates(self) -> int:
        """Return 3: the scales of read, write and mixing."""
        return 3

    def rows(self, x: Tensor) -> Tensor:
        """Return every stream as a row, `[..., n, C]`."""
        return x

    def activate(self, y: Tensor, alpha: Tensor, bias: Tensor, maps: Maps) -> Triple:
        """Return `alpha tanh(y) + static`; stream i's mixing weights feed column i of H_res."""
        n = maps.n
        t = torch.tanh(y)
        pre = t[..., 0] * alpha[0] + bias[:n]
        post = t[..., 1] * alpha[1] + bias[n : 2 * n]
        res = t[..., 2:].transpose(-1, -2) * alpha[2] + bias[2 * n :].unflatten(0, (n, n))
        return pre, post, res

    def vjp(self, y: Tensor, alpha: Tensor, bias: Tensor, maps: Maps, grads: Triple) -> Triple:
        """Return gradients of the gated tanh."""
        n = maps.n
        dpre, dpost, dres = grads
        g = torch.cat([dpre.unsqueeze(-1), dpost.unsqueeze(-1), dres.transpose(-1, -2)], -1)
        t = torch.tanh(y)
        by_logit = by_token(g * t).sum(0)
        dalpha = torch.stack([by_logit[0], by_logit[1], by_logit[2:].sum()])
        dbias = torch.cat([by_token(part).sum(0) for part in (dpre, dpost, dres.flatten(-2))])
        return g * _spread(alpha, (1, 1, n)) * (1 - t * t), dalpha, dbias

    def start_bias(self, start: Start, maps: Maps) -> Tensor:
        """Return the static matrix of the paper (Eq. 14): read the home stream, write 1, mix with I."""
        home = torch.nn.functional.one_hot(torch.tensor(start.home), maps.n).double()
        return torch.cat([home, start.post, torch.eye(maps.n, dtype=torch.float64).flatten()])


SMOOTH_SINKHORN = projections.SmoothSinkhorn()
CONNECTIONS: dict[str, Connection] = {"mhc": MHC(), "deepseek-v4": DeepSeekV4(), "hc": HC()}


def get(name: str) -> Connection:
    """Return the registered connection of that name.

    Raises:
        ConfigError: there is none; the message lists those that exist.
    """
    if name not in CONNECTIONS:
        raise ConfigError(f"connection must be one of {', '.join(map(repr, CONNECTIONS))}, not {name!r}")
    return CONNECTIONS[name]


def check(config: Config) -> None:
    """Check what a Config cannot check itself: that its projection is registered.

    Raises:
        ConfigError: it is not; the message lists those that are.
    """
    projections.get(config.projection)
