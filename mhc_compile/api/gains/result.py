"""What `gains` returns: numbers, frozen, as plain Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from mhc_compile.api.gains import tables
from mhc_compile.api.gains.site import Amax, SiteGains
from mhc_compile.api.tables import as_html, as_text

DEAD = 1e-5  # streams that differ by less are rounding of equal ones


@dataclasses.dataclass(frozen=True, repr=False)
class Gains:
    """The gains of an upgraded model in one run. `print(gains)` shows a table, a notebook one in HTML.

    Attributes:
        streams: number n of streams.
        connection: "mhc", "deepseek-v4" or "hc".
        projection: the map to H_res (of "mhc").
        sites: every site in every call, in the order in which they ran.
    """

    streams: int
    connection: str
    projection: str
    sites: tuple[SiteGains, ...]

    @property
    def composite(self) -> Amax:
        """The largest composite gain of all, forward or backward: by its mean over tokens, and by one token."""
        gains = [gain for site in self.sites for gain in (site.composite.forward, site.composite.backward)]
        return Amax(_largest(gain.mean for gain in gains), _largest(gain.max for gain in gains))

    @property
    def spread(self) -> dict[int, float]:
        """The largest spread of each region."""
        found: dict[int, list[float]] = {}
        for site in self.sites:
            found.setdefault(site.region, []).append(site.spread)
        return {region: _largest(values) for region, values in found.items()}

    @property
    def dead(self) -> tuple[int, ...]:
        """The regions whose streams are all the same, as they are at the start."""
        return tuple(region for region, spread in self.spread.items() if spread <= DEAD)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON: dicts, lists, strings and numbers."""
        summary = {
            "composite": dataclasses.asdict(self.composite),
            "spread": {str(region): value for region, value in self.spread.items()},
            "dead": list(self.dead),
        }
        made: dict[str, Any] = _listed(dataclasses.asdict(self))
        for site, shown in zip(self.sites, made["sites"], strict=True):
            shown["dominance"] = site.dominance
        return made | summary

    def __str__(self) -> str:
        """Return the gains as a text table."""
        return as_text(tables.parts(self._summary(), self.sites))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the gains as a table for a notebook."""
        return as_html(tables.parts(self._summary(), self.sites))

    def _summary(self) -> str:
        regions, worst = self.spread, self.composite
        how = self.connection if self.connection == "hc" else f"{self.connection}, {self.projection}"
        return (
            f"{len(self.sites)} sites, {self.streams} streams ({how}); composite gain at most"
            f" {tables.number(worst.mean)} ({tables.number(worst.max)}); streams apart in"
            f" {len(regions) - len(self.dead)} of {len(regions)} regions"
        )


def _largest(values: Iterable[float]) -> float:
    """Return the largest value; NaN if one is, since what is not a number must not look small."""
    listed = list(values)
    return next((value for value in listed if value != value), max(listed))  # NaN alone differs


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(held) for key, held in value.items()}
    return [_listed(held) for held in value] if isinstance(value, (list, tuple)) else value
