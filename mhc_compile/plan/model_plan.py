"""The plan of a whole model: which sites it has, how they share streams. Frozen by upgrade, stored with the model."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping
from typing import Any

from mhc_compile.config import Config
from mhc_compile.errors import PlanMismatchError
from mhc_compile.passes.base import site_name

VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SitePlan:
    """One hyper-connection of the plan.

    Attributes:
        name: `owner.label`, where `owner.mhc.label` holds the parameters.
        owner: path of the module whose forward contains the add.
        label: name within the owner, from the branch's module.
        kind: shape of the connection, such as "pre-norm" or "parallel pre-norm".
        adds: how many add nodes the site stands for.
        source: "file.py:line" of the add.
        shape: shape of the residual in the run that was captured.
        axis: feature axis of that shape, negative.
        region: index of the region.
        k: position in the region, from 0.
        length: number of sites of the region.
        predecessor: name of the site whose streams continue here, or None at the region's start.
        lifts: ops applied to every stream on the way here.
        starts: True where the region starts with a tensor that no site of another graph had made.
        spot: where in its owner the add stands (`passes.base.Spot`), "" in plans of older releases.
        head: True where no site continues its streams, and a learned readout ends them.
    """

    name: str
    owner: str
    label: str
    kind: str
    adds: int
    source: str
    shape: tuple[int, ...]
    axis: int
    region: int
    k: int
    length: int
    predecessor: str | None
    lifts: tuple[str, ...]
    starts: bool = False
    spot: str = ""
    head: bool = False

    @property
    def channels(self) -> int:
        """Number C of features."""
        return self.shape[self.axis]

    def identity(self) -> dict[str, Any]:
        """Return what makes the site the same one in another process: not its source line or batch size."""
        keys = ("name", "region", "k", "length", "predecessor")
        return {key: getattr(self, key) for key in keys} | {"channels": self.channels}


@dataclasses.dataclass(frozen=True)
class ModelPlan:
    """The sites of a model and the options that define its function.

    Attributes:
        config: the options.
        sites: the sites, in program order.
        left_out: the places of connections that stay plain, by the path of their owner.
    """

    config: Config
    sites: tuple[SitePlan, ...]
    left_out: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def successors(self) -> Counter[str]:
        """How many sites continue the streams of each; those of none, which are not in it, end theirs."""
        return Counter(site.predecessor for site in self.sites if site.predecessor is not None)

    def joined(self, other: ModelPlan) -> ModelPlan:
        """Return this plan with the sites of another behind its own, those that it has already left out."""
        regions = 1 + max((site.region for site in self.sites), default=-1)
        known = {site.name for site in self.sites}
        more = [dataclasses.replace(s, region=s.region + regions) for s in other.sites if s.name not in known]
        owners = dict.fromkeys((*self.left_out, *other.left_out))
        left_out = {o: tuple(dict.fromkeys((*self.left_out.get(o, ()), *other.left_out.get(o, ())))) for o in owners}
        return ModelPlan(self.config, (*self.sites, *more), left_out)

    def without(self, names: Collection[str]) -> ModelPlan:
        """Return the plan without some sites; those behind them continue what is left of their region."""
        before = {site.name: site.predecessor for site in self.sites}

        def left(name: str | None) -> str | None:
            while name in names:
                name = before.get(str(name))
            return name

        kept = [dataclasses.replace(s, predecessor=left(s.predecessor)) for s in self.sites if s.name not in names]
        return dataclasses.replace(self, sites=tuple(kept))

    def lost_owner(self, known: Container[str]) -> str | None:
        """Return the path of the first owner that is not among a model's modules; None where all are."""
        return next((site.owner for site in self.sites if site.owner not in known), None)

    def moved(self, change: Callable[[str], str]) -> ModelPlan:
        """Return the plan of the same sites where the paths of their owners are other ones."""
        names: dict[str | None, str | None] = {s.name: site_name(change(s.owner), s.label) for s in self.sites}
        sites = [
            dataclasses.replace(
                s, name=str(names[s.name]), owner=change(s.owner), predecessor=names.get(s.predecessor, s.predecessor)
            )
            for s in self.sites
        ]
        left_out = {change(owner): spots for owner, spots in self.left_out.items()}
        return dataclasses.replace(self, sites=tuple(sites), left_out=left_out)

    def to_json(self) -> str:
        """Return the plan as text for the model's extra state."""
        return json.dumps(
            {
                "version": VERSION,
                "function": self.config.function(),
                "choice": self.config.choice(),
                "build": self.config.chosen_build(),
                "sites": [site.identity() for site in self.sites],
                "details": [dataclasses.asdict(site) for site in self.sites],
                "left_out": self.left_out,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> ModelPlan:
        """Read a plan.

        Raises:
            PlanMismatchError: it was written in another format, or with options that are gone.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PlanMismatchError(f"the plan cannot be read ({error}); was the checkpoint cut off?") from None
        if data.get("version") != VERSION:
            raise PlanMismatchError(
                f"the plan has format {data.get('version')}, this mhc_compile reads {VERSION}; install the release that"
                " wrote it, or upgrade the model anew and load its own weights only"
            )
        sites = [SitePlan(**{key: _tupled(value) for key, value in site.items()}) for site in data["details"]]
        left_out = {owner: tuple(spots) for owner, spots in data.get("left_out", {}).items()}
        chosen = {**data.get("choice", {}), **data.get("build", {})}
        config = Config.from_options(chosen, Config.from_function(data["function"]))
        return cls(config, tuple(sites), left_out)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def options_that_differ(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the names of the options in which two functions differ."""
    return sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])
