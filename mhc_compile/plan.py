"""The plan of a whole model: which sites it has, how they share streams. Frozen by upgrade, stored with the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from mhc_compile.capture import Captured, CapturedGraph, Stack
from mhc_compile.config import Config
from mhc_compile.errors import PlanMismatchError
from mhc_compile.passes import ANALYSIS, Context, Plan, Rejection
from mhc_compile.passes.base import PlannedSite, value
from mhc_compile.passes.run import run

VERSION = 1
_Chain = list[tuple[PlannedSite, str | None]]  # sites of a region with the names of their predecessors


@dataclasses.dataclass(frozen=True)
class Site:
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
    """The sites of a model and the options that define its function."""

    config: Config
    sites: tuple[Site, ...]

    def joined(self, other: ModelPlan) -> ModelPlan:
        """Return this plan with the sites of another behind its own, those that it has already left out."""
        regions = 1 + max((site.region for site in self.sites), default=-1)
        known = {site.name for site in self.sites}
        more = [dataclasses.replace(s, region=s.region + regions) for s in other.sites if s.name not in known]
        return ModelPlan(self.config, (*self.sites, *more))

    def to_json(self) -> str:
        """Return the plan as text for the model's extra state."""
        return json.dumps(
            {
                "version": VERSION,
                "function": self.config.function(),
                "sites": [site.identity() for site in self.sites],
                "details": [dataclasses.asdict(site) for site in self.sites],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> ModelPlan:
        """Read a plan.

        Raises:
            PlanMismatchError: it was written by another version of the format.
        """
        data = json.loads(text)
        if data.get("version") != VERSION:
            raise PlanMismatchError(
                f"the plan has format {data.get('version')}, this mhc_compile reads {VERSION}; install the release that"
                " wrote it, or upgrade the model anew and load its own weights only"
            )
        sites = [Site(**{key: _tupled(value) for key, value in site.items()}) for site in data["details"]]
        return cls(Config.from_options(data["function"]), tuple(sites))


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclasses.dataclass
class Draft:
    """A plan in the making, from every graph of a captured run."""

    plan: ModelPlan
    rejections: tuple[Rejection, ...]
    links: list[str]


def draw(captured: Captured, model: nn.Module, config: Config) -> Draft:
    """Plan every graph, link regions where one graph's output is another's input, and number the sites."""
    plans = [plan_graph(graph.gm, config, Stack.of(model, graph.root)) for graph in captured.graphs]
    return number(plans, config, captured.graphs)


def plan_graph(gm: fx.GraphModule, config: Config, namer: Stack) -> Plan:
    """Run the analysis passes on a graph (its adds are respelt in place)."""
    context = Context(config, namer)
    run(ANALYSIS, gm, context)
    return context.plan


def number(plans: list[Plan], config: Config, graphs: list[CapturedGraph] | None = None) -> Draft:
    """Turn per-graph plans into one: join regions, drop those of a single site, give every site its place."""
    rejections = [rejection for plan in plans for rejection in plan.rejections]
    chains: list[_Chain] = []
    leaving: dict[int, _Chain] = {}  # id of a tensor -> the chain that ends in it
    links: list[str] = []
    for g, plan in enumerate(plans):
        local: dict[int, _Chain] = {}
        for site in plan.sites:
            chain, before = local.get(site.region), None
            if chain is None:
                chain = leaving.get(_entering(site, graphs[g])) if graphs else None
                if chain is None:
                    chains.append(chain := [])
                else:
                    links.append(f"{chain[-1][0].residual.name} -> {site.residual.name}")
                    before = chain[-1][0].residual.name
                local[site.region] = chain
            if site.predecessor is not None:
                before = plan.sites[site.predecessor].residual.name
            chain.append((site, before))
        for leave in plan.exits if graphs else ():
            tensor = graphs[g].outputs[leave.output]  # type: ignore[index]
            leaving[id(tensor)] = local[plan.sites[leave.site].region]
    sites: list[Site] = []
    for chain in chains:
        if len(chain) < 2:
            rejections.append(_single(chain[0][0]))
            continue
        region = len({site.region for site in sites})
        sites += [_place(site, before, region, k, len(chain)) for k, (site, before) in enumerate(chain)]
    return Draft(ModelPlan(config, tuple(sites)), tuple(rejections), links)


def _entering(site: PlannedSite, graph: CapturedGraph) -> int:
    """Return the id of the tensor that the site's carrier came in as."""
    inputs = graph.gm.graph.find_nodes(op="placeholder")
    return id(graph.inputs[inputs.index(site.inflow)]) if site.inflow in inputs and graph.inputs else 0


def _single(site: PlannedSite) -> Rejection:
    residual = site.residual
    message = "stands alone: streams that start and end around one connection cannot mix anything"
    return Rejection("single-site-region", True, message, residual.owner, residual.source, residual.total.name)


def _place(site: PlannedSite, before: str | None, region: int, k: int, length: int) -> Site:
    residual = site.residual
    tensor = value(residual.total)
    shape = tuple(int(size) for size in tensor.shape) if isinstance(tensor, Tensor) else ()
    lifts = tuple(_lift_name(node) for node in site.lifts)
    return Site(
        residual.name, residual.owner, residual.label, residual.kind, len(residual.adds), residual.source,
        shape, residual.axis, region, k, length, before, lifts,
    )  # fmt: skip


def _lift_name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def options_that_differ(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the names of the options in which two functions differ."""
    return sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])
