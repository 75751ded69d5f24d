"""Parts of arguments and results that several ops share, in the order that they have there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from mhc_compile.config import Config
from mhc_compile.ops.signatures.fields import flat, named, names


class Parameters(NamedTuple):
    """A site's parameters: phi `[K, m]`, alpha `[3]`, and the bias as a learned delta and a fixed base."""

    phi: Tensor
    alpha: Tensor
    delta: Tensor
    base: Tensor


class MapOptions(NamedTuple):
    """How coefficients are made of streams; without `kernels` always as the reference."""

    n: int
    connection: str
    projection: str
    iters: int
    eps: float
    kernels: bool

    @classmethod
    def of(cls, config: Config) -> MapOptions:
        """Return what a Config says."""
        kernels = config.kernels != "reference"
        return cls(config.streams, config.connection, config.projection, config.sinkhorn_iters, config.eps, kernels)


class Tail(NamedTuple):
    """What ends a branch: (f + offset) multiplier scale, with vectors `[C]`."""

    offset: Tensor | None
    scale: Tensor | None
    multiplier: float


class Written(NamedTuple):
    """What is written to streams: a branch's output f `[..., C]` and its tail, and the maps to write with."""

    f: Tensor
    h_post: Tensor
    h_res: Tensor
    tail: Tail


class SiteInputs(NamedTuple):
    """A site's parameters, and weight and shift `[C]` of the norm that its branch starts with."""

    parameters: Parameters
    weight: Tensor | None
    shift: Tensor | None


class Options(NamedTuple):
    """How a site's coefficients and its branch's norm are made, and whether x is one tensor that all streams equal."""

    maps: MapOptions
    norm: str
    norm_eps: float
    equal_streams: bool

    @property
    def n(self) -> int:
        """Return the number of streams."""
        return self.maps.n


class Kept(NamedTuple):
    """What a backward needs of a site's forward: H_pre, logits y, inverse norm r, and the norm's mean and deviation."""

    h_pre: Tensor
    y: Tensor
    r: Tensor
    mean: Tensor
    rstd: Tensor


class SavedSite(NamedTuple):
    """What a backward is given of a site; `bias` is base + delta."""

    phi: Tensor
    alpha: Tensor
    bias: Tensor
    weight: Tensor | None
    shift: Tensor | None
    kept: Kept


class SiteUpstream(NamedTuple):
    """The gradients of a site's u, H_post and H_res."""

    g_u: Tensor
    g_post: Tensor
    g_res: Tensor


class History(NamedTuple):
    """The writes between a block's head and the streams that a backward reads; entry i of each list is of write i.

    With `equal_head` the head is one tensor `[..., C]` that all streams equal.
    """

    fs: Sequence[Tensor]
    posts: Sequence[Tensor]
    ress: Sequence[Tensor]
    offsets: Sequence[Tensor | None]
    scales: Sequence[Tensor | None]
    multipliers: Sequence[float]
    equal_head: bool

    @classmethod
    def of(cls, writes: Iterable[Written], equal_head: bool) -> History:
        """Return the history of these writes."""
        columns = [list(column) for column in zip(*map(flat, writes), strict=True)]
        return cls._make([*(columns or [[] for _ in names(Written)]), equal_head])

    def writes(self) -> list[Written]:
        """Return the writes, first to last."""
        *columns, _ = self
        return [named(Written, write) for write in zip(*columns, strict=True)]


NO_HISTORY = History([], [], [], [], [], [], False)
