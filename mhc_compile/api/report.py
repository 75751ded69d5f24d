"""What was found, what was not and why, what it costs: the report of explain and upgrade, and its table."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from mhc_compile.api.tables import Part, Table, as_html, as_text, first_of
from mhc_compile.capture.model_run import Captured
from mhc_compile.model.optimizers import named_parameters
from mhc_compile.model.sites import BUFFERS, part_shapes
from mhc_compile.passes import Rejection
from mhc_compile.plan.drafting import Draft
from mhc_compile.plan.joints import Cut
from mhc_compile.plan.memory import Memory
from mhc_compile.plan.model_plan import ModelPlan, SitePlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """A chain of sites through which streams flow.

    Attributes:
        index: its number.
        sites: how many sites it has.
        first: name of the first site, where x is copied into the streams.
        last: name of the last site, behind which the streams are read out.
        lifts: names of the ops between sites that are applied to every stream, each name once.
    """

    index: int
    sites: int
    first: str
    last: str
    lifts: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """The result of explain and upgrade. `print(report)` shows it as tables.

    Attributes:
        plan: the sites, and the options that they are made with.
        model: the model.
        rejections: adds that are no site, each with its reason.
        breaks: why Dynamo broke the graph, and where.
        cuts: what these breaks cut: regions that go on or end, and connections that are not found because of them.
        graphs: number of graphs of the captured run; 0 where the model was not run.
        memory: what training keeps of the streams.
        training: whether the tables show `memory`.
        max_error: largest difference measured by upgrade(verify=True), relative to the largest entry; else None.
    """

    plan: ModelPlan
    model: nn.Module | None = dataclasses.field(default=None, repr=False)
    rejections: tuple[Rejection, ...] = ()
    breaks: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()
    graphs: int = 0
    memory: Memory = dataclasses.field(default_factory=Memory)
    training: bool = False
    max_error: float | None = None

    @classmethod
    def of_plan(cls, plan: ModelPlan, model: nn.Module) -> Report:
        """Return the report where nothing but the plan is known, since the model was not run."""
        return cls(plan=plan, model=model)

    @classmethod
    def of_run(cls, captured: Captured, draft: Draft, model: nn.Module) -> Report:
        """Return the report of a captured run and of what was planned from it."""
        return cls(
            plan=draft.plan,
            model=model,
            rejections=draft.rejections,
            breaks=tuple(map(str, captured.breaks)),
            cuts=draft.cuts,
            graphs=len(captured.graphs),
            memory=draft.memory,
        )

    @property
    def sites(self) -> tuple[SitePlan, ...]:
        """The sites, in program order."""
        return self.plan.sites

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions, in the order of their first sites."""
        groups: dict[int, list[SitePlan]] = defaultdict(list)
        for site in self.sites:
            groups[site.region].append(site)
        return tuple(
            Region(
                index=index,
                sites=len(sites),
                first=sites[0].name,
                last=sites[-1].name,
                lifts=tuple(dict.fromkeys(op for site in sites for op in site.lifts)),
            )
            for index, sites in groups.items()
        )

    @property
    def parameters(self) -> int:
        """Number of learned values that the sites add."""
        config = self.plan.config
        if not config.rewrites:
            return 0
        kinds = Counter((site.channels, site.head) for site in self.sites)
        return sum(
            count * math.prod(shape)
            for kind, count in kinds.items()
            for name, shape in part_shapes(config, *kind).items()
            if name not in BUFFERS
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as what JSON can hold."""
        listed = {name: getattr(self, name) for name in ("sites", "rejections", "regions", "cuts")}
        payload: dict[str, Any] = {k: [dataclasses.asdict(v) for v in vs] for k, vs in listed.items()}
        memory = {name: getattr(self.memory, name) for name in ("kept", "peak", "without", "before_rewrite", "moved")}
        runs = [dataclasses.asdict(run) for run in self.memory.runs]
        plain = {name: getattr(self, name) for name in ("breaks", "graphs", "parameters")}
        return payload | plain | {"memory": memory | {"recompute": self.memory.recompute, "runs": runs}}

    def __str__(self) -> str:
        """Return the report as text tables."""
        return as_text(self._parts())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the report as a notebook shows it."""
        return as_html(self._parts())

    def print(self) -> None:
        """Print the report."""
        print(self)

    def _parts(self) -> Iterable[Part]:
        config = self.plan.config
        yield (
            f"{len(self.sites)} sites in {len(self.regions)} regions, {len(self.rejections)} other adds, {self.graphs}"
            f" graph(s); connection={config.connection}, streams={config.streams}"
        )
        if self.sites:
            rows = [(s.name, s.kind, str(s.region), _times(s.shape), str(s.adds), short(s.source)) for s in self.sites]
            yield Table(("site", "kind", "region", "shape", "adds", "source"), rows)
        for region in self.regions:
            lifted = f"; lifted: {', '.join(region.lifts)}" if region.lifts else ""
            yield f"region {region.index}: {region.sites} sites, {region.first} .. {region.last}{lifted}"
        yield from self._why_not()
        if self.sites:
            own = _own_parameters(self.model) if self.model is not None else 0
            share = f" ({self.parameters / own:.2%} of the model's {own:,})" if own else ""
            yield f"adds {self.parameters:,} parameters{share}, {4 * self.parameters / 2**20:.2f} MiB in fp32"
        if self.training and self.memory.runs:
            yield Table(*self.memory.table({site.name: site.region for site in self.sites}))
            yield from self.memory.lines()
        if self.cuts:
            told = [(c.name, c.kind, "yes" if c.carries else "no", short(c.source), c.reason) for c in self.cuts]
            yield Table(("cut between graphs", "kind", "carries", "broken at", "by"), told)
        for reason in self.breaks:
            yield f"graph break: {reason}"
        if self.max_error is not None:
            yield f"verified: outputs differ by at most {self.max_error:.1e} of the largest entry"

    def _why_not(self) -> Iterable[Part]:
        groups: dict[tuple[bool, str], list[Rejection]] = defaultdict(list)
        for rejection in self.rejections:
            groups[rejection.residual, rejection.reason].append(rejection)
        rows = []
        for (residual, reason), members in sorted(groups.items(), reverse=True):
            places = list(dict.fromkeys(short(member.source) for member in members))
            yes = "yes" if residual else "no"
            rows.append((reason, yes, str(len(members)), first_of(places, 2), members[0].message))
        if rows:
            yield Table(("not rewritten", "residual", "adds", "source", "why"), rows)


def _own_parameters(model: nn.Module) -> int:
    """Return the number of a model's values without those of its sites."""
    held = {id(parameter) for _, parameter in named_parameters(model)}
    return sum(p.numel() for p in model.parameters() if id(p) not in held)


def short(source: str) -> str:
    """Return "file.py:line" without the folder."""
    return os.path.basename(source)


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
