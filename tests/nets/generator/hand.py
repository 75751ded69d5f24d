"""Streams by hand for networks whose sites go by any name: a site is told by where its connection stands."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from torch import Tensor

import mhc_compile as mhc
from tests.nets.streams import Hand, Streams

Place = tuple[str, str, int]  # the module, the connection in it, the number of the call


class UnplannedError(Exception):
    """A connection runs that the plan knows nothing of."""


@dataclasses.dataclass(frozen=True)
class Placed(Hand):
    """The equations, and the site of every place.

    While `names` is None, places are written down and streams pass their connections as they pass any op.
    """

    names: dict[Place, str] | None = None
    regions: dict[str, int] = dataclasses.field(default_factory=dict)
    met: list[Place] = dataclasses.field(default_factory=list)
    lies: dict[Place, list[int]] = dataclasses.field(default_factory=dict)
    current: list[int | None] = dataclasses.field(default_factory=lambda: [None])

    def start(self) -> None:
        """Begin a call of the network."""
        self.calls.clear()
        self.current[0] = None

    def site(self, path: str, label: str) -> str:
        """The name of the site; none for what was told of instead."""
        count = self.calls[f"{path} {label}"]
        self.calls[f"{path} {label}"] += 1
        place = path, label, count
        self.met.append(place)
        if self.names is None:
            return ""
        if place not in self.names:
            raise UnplannedError(place)
        return self.names[place]

    def arriving(self, site: str, streams: Streams) -> Streams:
        """Streams start anew where the report says that another region does."""
        region = self.regions.get(site)
        if region is None or region == self.current[0]:
            return streams
        self.current[0] = region
        return Streams(streams.seen[None].expand(self.n, *streams.seen.shape), streams.axis, streams.seen)

    def lying(self, read: Tensor) -> Tensor:
        """What is drawn for each element follows the order of memory: that of the run in which places were met."""
        axes = self.lies.setdefault(self.met[-1], sorted(range(read.dim()), key=read.stride, reverse=True))
        return read.permute(axes).contiguous().permute([axes.index(i) for i in range(len(axes))])


def piece(path: str) -> str:
    """The structure that a module belongs to: the first two parts of its path."""
    return ".".join(path.split(".")[:2])


def places(report: mhc.Report, met: list[Place]) -> dict[Place, str]:
    """The site of every place of the run that was planned, or "" in a structure without sites."""
    sites: dict[str, list[str]] = defaultdict(list)
    for site in report.sites:
        sites[piece(site.owner)].append(f"{site.owner}.mhc.{site.label}")
    names: dict[Place, str] = {}
    for key in dict.fromkeys(piece(path) for path, _, _ in met):
        here = [place for place in met if piece(place[0]) == key]
        found = sites.pop(key, [])
        if found and len(found) != len(here):
            raise AssertionError(f"{key} has {len(here)} connections, but sites {found}")
        names |= dict(zip(here, found or [""] * len(here), strict=True))
    if sites:
        raise AssertionError(f"no connection stands where the sites {dict(sites)} do")
    return names
