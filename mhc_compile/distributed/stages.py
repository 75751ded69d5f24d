"""Pipelines: parts of an upgraded model become stages that hand its streams on.

Every process tells what its parts hold, so all of them find the same mistake and none waits for another.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from mhc_compile.distributed.boundary import Boundary, set_boundaries
from mhc_compile.errors import NotUpgradedError, PlanMismatchError
from mhc_compile.model.owners import is_owner
from mhc_compile.model.phase import set_part
from mhc_compile.model.sites import ATTRIBUTE, RootSites, sites_in
from mhc_compile.plan.model_plan import ModelPlan, SitePlan

_REMEDY = "Upgrade the whole model alike on every process, and cut copies of it between two connections"


def connect_stages(parts: Mapping[int, nn.Module], count: int, group: Any = None) -> None:
    """Let the streams of an upgraded model cross the boundaries between pipeline stages.

    Call it once on every process, with the parts that this process runs; then make stages of them as usual, such as
    `torch.distributed.pipelining.PipelineStage(part, index, count, device)`. The first stage takes, and the last one
    gives, what the model does. Between stages goes one contiguous tensor `[..., n C]` in the streams' dtype in place of
    the hidden states `[..., C]`; where these are no mean of their streams, as behind a norm, `[..., (n + 1) C]`.

    A part keeps its names, its class by name and its wrappers, so state dicts are parts of the whole model's. It may be
    compiled and sharded before or after. Compiled backwards keep what they read in this process from now on, for
    zero-bubble schedules run them twice: for the gradients of inputs, then for those of parameters.

    Args:
        parts: by the number of the stage, copies of the upgraded model with layers taken away, or modules of your own
            around some of its layers.
        count: number of stages.
        group: the processes of the pipeline, a process group or a `DeviceMesh` of one dimension; the default group
            where there is one.

    Raises:
        NotUpgradedError: no process has a plan.
        PlanMismatchError: the parts are not the plan's sites, each once and in order; the same text on all processes.
    """
    mine = [_Held.of(index, part) for index, part in parts.items()]
    held = sorted(_told(mine, group), key=lambda each: each.stage)
    plan = _agreed(held, count)
    edges = boundaries(plan, {name: each.stage for each in held for name in each.sites})
    for index, part in parts.items():
        _keep_plan(part, plan)
        set_part(part)
        set_boundaries(part, edges.get(index - 1), edges.get(index))
    torch._functorch.config.donated_buffer = False  # torch asks while a backward runs, so no context would do


def _keep_plan(part: nn.Module, plan: ModelPlan) -> None:
    """Let what is left of the model in a part know which sites it has; it may be inside of wrappers."""
    kept = frozenset(site.path for _, site in sites_in(part))
    for module in list(part.modules()):
        if is_owner(module) and module._modules.get(ATTRIBUTE) is None:  # whoever cut the model did not know it
            module.add_module(ATTRIBUTE, RootSites(plan.to_json()))
        root = module._modules.get(ATTRIBUTE)
        if isinstance(root, RootSites):
            root.kept = kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Held:
    """What a process says of one of its parts."""

    rank: int
    stage: int
    plan: str
    sites: tuple[str, ...]

    @classmethod
    def of(cls, stage: int, part: nn.Module) -> _Held:
        """Describe a part; where whoever cut the model took the plan away, its sites still know it."""
        sites = [site for _, site in sites_in(part)]
        roots = (each.text for each in part.modules() if isinstance(each, RootSites))
        of_sites = (site.flow.plan.text for site in sites if site.flow.plan is not None)
        plan = next(filter(None, (*roots, *of_sites)), "")
        return cls(rank=_rank(), stage=stage, plan=plan, sites=tuple(site.path for site in sites))

    def __str__(self) -> str:
        return f"stage {self.stage} (rank {self.rank})"


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _rank() -> int:
    return torch.distributed.get_rank() if _is_distributed() else 0


def _told(mine: list[_Held], group: Any) -> list[_Held]:
    """Return what all processes say."""
    if not _is_distributed():
        return mine
    processes = group.get_group() if hasattr(group, "get_group") else group
    every: list[Any] = [None] * torch.distributed.get_world_size(processes)
    torch.distributed.all_gather_object(every, mine, group=processes)
    return [held for each in every for held in each]


def _agreed(held: Sequence[_Held], count: int) -> ModelPlan:
    """Return the plan of all stages, every site of which is in one of them.

    Raises:
        NotUpgradedError: nobody has a plan.
        PlanMismatchError: they do not.
    """
    stages = [each.stage for each in held]
    if sorted(stages) != list(range(count)):
        raise PlanMismatchError(
            f"a pipeline of {count} stages has each once, but the processes have {stages}. Give each process its own"
            " stages, and as group the processes of one pipeline"
        )
    planned = [each for each in held if each.plan]
    if not planned:
        raise NotUpgradedError(
            "no part of the pipeline holds a plan; call mhc_compile.upgrade(model, args) on the whole model, then cut"
            " it"
        )
    first, *others = planned
    plan = ModelPlan.from_json(first.plan)
    for each in others:
        if each.plan != first.plan:
            _compare(first, plan, each, ModelPlan.from_json(each.plan))
    _check_sites(held, plan)
    return plan


def _check_sites(held: Sequence[_Held], plan: ModelPlan) -> None:
    """Check that the parts hold every site of the plan once.

    Raises:
        PlanMismatchError: they do not; the text names the first site.
    """
    names = {site.name for site in plan.sites}
    seen = Counter(name for each in held for name in each.sites)
    for each in held:
        for name in each.sites:
            if name not in names or seen[name] > 1:
                where = [str(other) for other in held if name in other.sites]
                said = f"is in {' and '.join(where)}" if name in names else f"of {each} is not in the plan"
                raise PlanMismatchError(
                    f"site {name!r} {said}, but a pipeline has every site of its plan once. {_REMEDY}"
                )
    lost = next((site.name for site in plan.sites if not seen[site.name]), None)
    if lost is not None:
        raise PlanMismatchError(f"site {lost!r} of the plan is in no stage: its layer was left out. {_REMEDY}")


def _compare(one: _Held, plan: ModelPlan, other: _Held, plan_there: ModelPlan) -> None:
    """Check that two parts have the same plan.

    Raises:
        PlanMismatchError: they differ; the text names the first site that does.
    """
    if plan.config.function() != plan_there.config.function():
        raise PlanMismatchError(f"{one} and {other} were upgraded with different options. {_REMEDY}")
    pairs = zip_longest(*([site.identity() for site in each.sites] for each in (plan, plan_there)))
    differ = next((a or b for a, b in pairs if a != b), None)
    if differ is not None:
        raise PlanMismatchError(
            f"{one} and {other} have different plans: they differ at site {differ['name']!r}. {_REMEDY}"
        )


def boundaries(plan: ModelPlan, stages: Mapping[str, int]) -> dict[int, Boundary]:
    """Return the streams that cross boundaries, by the number of the stage that they leave.

    Args:
        plan: of the whole model.
        stages: the number of its stage, by the name of the site.

    Raises:
        PlanMismatchError: streams would go backwards, pass by a stage, or two of them would cross one boundary.
    """
    by_name = {site.name: site for site in plan.sites}
    crossing: defaultdict[int, list[SitePlan]] = defaultdict(list)
    for site in plan.sites:
        before = site.predecessor
        if before is None or stages[before] == stages[site.name]:
            continue
        start, end = stages[before], stages[site.name]
        if end != start + 1:
            way = "an earlier one" if end < start else f"stage {end}, past stages that hold no site between the two"
            raise PlanMismatchError(
                f"site {site.name!r} continues the streams of site {before!r}, from stage {start} to {way}; streams go"
                f" from each stage to the next. {_REMEDY}"
            )
        crossing[start].append(site)
    return {start: _boundary(plan, by_name, sites, start) for start, sites in crossing.items()}


def _boundary(plan: ModelPlan, by_name: Mapping[str, SitePlan], takers: Sequence[SitePlan], start: int) -> Boundary:
    sources = sorted({str(site.predecessor) for site in takers})
    if len(sources) > 1:
        raise PlanMismatchError(
            f"the streams of sites {', '.join(map(repr, sources))} would all cross the boundary behind stage {start};"
            f" one tensor of streams can. {_REMEDY}"
        )
    site = by_name[sources[0]]
    return Boundary(
        site=site.name,
        taker=takers[0].name,
        streams=plan.config.streams,
        channels=site.channels,
        dims=len(site.shape),
        axis=site.axis,
        successors=len(takers),
    )
