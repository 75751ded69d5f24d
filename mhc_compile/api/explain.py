"""explain: what the backend would do with a model, and why."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from mhc_compile.api.report import Report
from mhc_compile.api.tables import first_of
from mhc_compile.api.wrappers import inner
from mhc_compile.capture.model_run import Captured, run_captured
from mhc_compile.config import Config
from mhc_compile.errors import CaptureError, warn
from mhc_compile.ops import connections
from mhc_compile.passes import Rejection
from mhc_compile.passes.graph.walk import stacks
from mhc_compile.passes.reasons import reject
from mhc_compile.plan.drafting import draw
from mhc_compile.plan.model_plan import ModelPlan


def explain(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    config: Config | None = None,
    training: bool = False,
) -> Report:
    """Run the model once under capture and report its sites, the other adds with reasons, and the cost.

    Buffers, attributes and random state are put back afterwards. What is not: parameters that the model's own forward
    changes, of which a warning tells, and what it changes inside of its attributes, such as a list.

    Args:
        model: any module, upgraded or not.
        args: positional arguments of a typical call.
        kwargs: keyword arguments of that call.
        config: what would be built; by default `Config()`.
        training: show in the tables what a training step with these arguments keeps of the streams (`Report.memory`).

    Returns:
        The report; print it to see its tables.

    Raises:
        CaptureError: the model does not run with these arguments.
        ConfigError: the projection is not registered.
    """
    report, _ = survey(inner(model), tuple(args), dict(kwargs or {}), config or Config())
    return dataclasses.replace(report, training=training)


def survey(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], config: Config
) -> tuple[Report, Captured | None]:
    """Run the model once under capture, plan its sites, and warn where there are none.

    Returns:
        The report, and the run: None where Dynamo traces the model without gradients only.

    Raises:
        ConfigError: the projection is not registered.
        CaptureError: the model does not run with these arguments.
    """
    connections.check(config)
    captured = None
    try:
        captured = run_captured(model, args, kwargs, doing="finding residual connections")
        report = Report.of_run(captured, draw(captured, model, config), model)
        whole = len(captured.graphs) == 1
        hidden = [] if whole else _hidden_by_autograd(model, args, kwargs, config)
    except CaptureError:
        report = Report.of_plan(ModelPlan(config, ()), model)
        hidden = _hidden_by_autograd(model, args, kwargs, config)
        if not hidden:
            raise
    seen = Counter((site.owner, site.source) for site in report.sites)
    seen += Counter((rejection.owner, rejection.source) for rejection in report.rejections)
    unseen = Counter(hidden) - Counter({rejection: seen[rejection.owner, rejection.source] for rejection in hidden})
    report = dataclasses.replace(report, rejections=(*report.rejections, *unseen.elements()))
    for glob in _idle(config, report):
        name = type(model).__name__
        warn(f"{glob!r} in include, exclude or split is the name of no connection of {name}; explain shows all")
    if not report.sites:
        warn(f"mhc finds nothing to rewrite in {type(model).__name__}")
    elif captured is not None and (idle := _left_out(captured, report, model)):
        warn(
            f"{first_of(idle, 3)} did not run, though their like have sites. A call that runs them will be refused: if"
            " chance left them out (LayerDrop), upgrade the model in eval(), else with arguments for which they run"
        )
    return report, captured


def _left_out(captured: Captured, report: Report, model: nn.Module) -> list[str]:
    """Return the paths of the modules of an owner's class that did not run; none where Dynamo did not see all."""
    if captured.skipped:
        return []
    ran = {str(id(each.root)) for each in captured.graphs}
    ran |= {key.partition("@")[0] for each in captured.graphs for stack in stacks(each.gm) for key, _ in stack}
    kinds = {type(model.get_submodule(site.owner)) for site in report.sites}
    return [path for path, each in model.named_modules() if type(each) in kinds and str(id(each)) not in ran]


def _idle(config: Config, report: Report) -> list[str]:
    """Return the patterns of the config that match no connection; `*` asks for none."""
    names = {site.name for site in report.sites} | {rejection.site for rejection in report.rejections}
    asked = [glob for glob in (*config.include, *config.exclude, *config.split) if glob != "*"]
    return [glob for glob in asked if not any(fnmatchcase(name, glob) for name in names)]


def _hidden_by_autograd(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], config: Config
) -> list[Rejection]:
    """Return the residual connections of a run without gradients, where Dynamo looks into torch.autograd.Function."""
    if not torch.is_grad_enabled():
        return []
    try:
        with torch.no_grad():
            draft = draw(run_captured(model, args, kwargs), model, config)
    except CaptureError:
        return []
    found: list[tuple[str, str]] = [(site.owner, site.source) for site in draft.plan.sites]
    found += [(rejection.owner, rejection.source) for rejection in draft.rejections if rejection.residual]
    return [reject("hidden-by-autograd", owner=owner, source=source) for owner, source in found]
