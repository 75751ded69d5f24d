"""What `gains` tells of one site: numbers, frozen, as plain Python."""

from __future__ import annotations

import dataclasses

Matrix = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Amax:
    """An Amax gain of one map, over tokens: the largest |sum| of a row (forward) or of a column (backward)."""

    mean: float
    max: float


@dataclasses.dataclass(frozen=True)
class Mixing:
    """One H_res, or a product of them.

    Attributes:
        forward: the largest absolute row sum: by how much a signal can grow on its way.
        backward: the largest absolute column sum: by how much its gradient can.
        matrix: the map, averaged over tokens; row i makes the new stream i.
    """

    forward: Amax
    backward: Amax
    matrix: Matrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteGains:
    """One site in one call.

    Attributes:
        name: the site's name, as in `Report.sites`.
        call: which call of the site it was, from 0.
        region: index of its region.
        k: its position in the region, from 0.
        tokens: number of tokens.
        h_pre: read weights `[n]`, averaged over tokens.
        h_post: write weights `[n]`, averaged over tokens.
        h_res: the site's own H_res.
        composite: the product of every H_res from this site to the end of its region, this one first.
        column_error: largest error of a column's sum of H_res, what Sinkhorn's iteration leaves; None for "hc".
        from_identity: Frobenius norm of H_res - I, averaged over tokens.
        from_uniform: Frobenius norm of H_res - 1/n, averaged over tokens; that of I is sqrt(n - 1).
        spread: how different the streams are behind the site: sqrt(sum |x_i - mean|^2 / sum |x_i|^2), 0 where all are
            equal, at most 1.
        spread_max: the same, of the token where it is largest.
        shares: of the mean, that each stream has: `<x_i, mean> / (n |mean|^2)`, which sum to 1. A learned readout may
            weigh streams otherwise.
    """

    name: str
    call: int
    region: int
    k: int
    tokens: int
    h_pre: tuple[float, ...]
    h_post: tuple[float, ...]
    h_res: Mixing
    composite: Mixing
    column_error: float | None
    from_identity: float
    from_uniform: float
    spread: float
    spread_max: float
    shares: tuple[float, ...]

    @property
    def dominance(self) -> float:
        """The largest share that one stream has of the mean; 1/n where all are equal."""
        return max(self.shares)
