"""One graph of an upgraded model: run the pipeline, and say what goes in and out."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from mhc_compile.backend import kernels
from mhc_compile.backend.carry import Port
from mhc_compile.backend.planned import Planned
from mhc_compile.capture.frames import frame_break, serve_alike, traced_with
from mhc_compile.capture.graphs import copy_graph, describe_streams
from mhc_compile.capture.owners import Stack
from mhc_compile.config import Config, current_function
from mhc_compile.errors import ConfigMismatchError, PlanMismatchError, SiteNotFoundError
from mhc_compile.model.sites import holder
from mhc_compile.ops.signatures import Marker, named
from mhc_compile.passes import ANALYSIS, PIPELINE, Request
from mhc_compile.passes.base import Known
from mhc_compile.passes.bind_sites import markers
from mhc_compile.passes.fuse_seams import Fused
from mhc_compile.passes.graph.effects import transforms
from mhc_compile.passes.runner import run
from mhc_compile.passes.widen import Crossing, Widened
from mhc_compile.plan.model_plan import options_that_differ


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewritten:
    """A rewritten graph.

    Attributes:
        gm: the graph.
        examples: fake tensors for its further inputs.
        takes: inputs whose streams come from another graph, one for each further input.
        gives: outputs whose streams go to another graph, one for each further output.
        starts: inputs with which regions start.
    """

    gm: fx.GraphModule
    examples: Sequence[Tensor]
    takes: Sequence[Port]
    gives: Sequence[Port]
    starts: Sequence[Port]


def config_of_markers(gm: fx.GraphModule, options: Mapping[str, Any] | None) -> Config | None:
    """Return the config with which the sites of a graph were made, or None where no marker names a site.

    Args:
        gm: a graph of Dynamo's, left as it is.
        options: those given to torch.compile.

    Raises:
        ConfigMismatchError: the options contradict the parameters that the model holds.
        PlanMismatchError: the graph holds sites of several models, made with different options.
    """
    specs = {named(Marker, marker.args).spec for module in gm.modules() for marker in markers(module)}
    if not specs:
        return None
    if len(specs) > 1:
        raise PlanMismatchError("one graph holds sites made with different options; compile these models apart")
    function = json.loads(specs.pop())
    build = function.pop("build", {})
    function = current_function(function)
    asked = Config.from_options(options, Config.from_options(build))
    told = {name: value for name, value in asked.function().items() if name in (options or {})}
    differ = options_that_differ(told, function)
    if differ:
        listed = ", ".join(f"{name}={told[name]!r} (the model has {function[name]!r})" for name in differ)
        raise ConfigMismatchError(
            f"the options ask for {listed}; drop them from torch.compile's options, or mhc_compile.remove(model) and"
            " upgrade it with the new ones"
        )
    return Config.from_options(function, asked)


def rewrite_graph(
    gm: fx.GraphModule,
    config: Config,
    planned: Planned | None = None,
    *,
    inline: bool = False,
    watched: bool = False,
) -> Rewritten:
    """Run the pipeline on a copy of a graph with markers.

    Args:
        gm: a graph of Dynamo's, left as it is.
        config: with which its sites were made.
        planned: what its frame runs of planned models; None without a frame of Dynamo's.
        inline: replace the ops of the IR by plain torch. Such a graph is a whole, too. Where it runs transforms of
            torch.func, which know plain torch only, the ops are replaced all the same.
        watched: leave the ops of the IR where they are, one by one: who runs the graph looks at them.

    Raises:
        MHCError: plan and graph do not fit together; the text says what to do.
    """
    planned = planned or Planned()
    planned.check(gm)
    made = copy_graph(gm)
    transformed = transforms.are_in(made)
    devices = frozenset[str]() if inline or watched else kernels.enable(config, made)
    request = dataclasses.replace(
        _request(config, planned),
        devices=frozenset() if transformed else devices,
        carries=not inline,
        inline=inline or (transformed and not watched),
    )
    try:
        results = run(PIPELINE, made, request)
    except (SiteNotFoundError, PlanMismatchError) as error:
        raise type(error)(f"{error}{_why_broken(made)}") from None
    widened = results[Widened]
    plain = "transforms of torch.func know plain torch only" if transformed and devices else ""
    unfused = {site.name: site.unfit or plain for site in widened.sites if site.unfit or plain}
    kernels.report(config, unfused, devices)
    if request.devices:
        kernels.tell(results[Fused].left_out)
        kernels.name_sites(made)
    made.recompile()
    return _finished(made, widened, config)


def _finished(made: fx.GraphModule, widened: Widened, config: Config) -> Rewritten:
    inputs = made.graph.find_nodes(op="placeholder")
    for phi in (each.phi for each in widened.takes if each.shared):
        if phi is not None:
            serve_alike(inputs[phi], "entry")
    return Rewritten(
        gm=made,
        examples=_examples(made, widened.takes, config.streams),
        takes=_ports(widened.takes),
        gives=_ports(widened.gives),
        starts=_ports(widened.starts),
    )


def _why_broken(gm: fx.GraphModule) -> str:
    """Say what broke the graph, if something did."""
    broken = frame_break(gm)
    if broken is None:
        return ""
    return (
        f" This graph was broken at {broken.source}: {broken.reason}. If that is a hook, an adapter or a quantised"
        " layer that was put in after upgrade, put it in before: upgrade leaves forwards alone that a break cuts."
    )


def check_without_markers(gm: fx.GraphModule, config: Config, planned: Planned) -> None:
    """Check that a graph without markers misses none of a planned model's connections.

    Raises:
        MHCError: it does; the text says what to do.
    """
    planned.check(gm)
    run(ANALYSIS, copy_graph(gm), _request(config, planned))


def _request(config: Config, planned: Planned) -> Request:
    return Request(
        config=config,
        namer=Stack.of(planned.root, models=[id(model) for model in planned.models]),
        planned=True,
        parted=planned.parted,
        whole=planned.whole,
        known=_known,
        stays_plain=functools.partial(planned.stays_plain, config=config),
    )


def _known(phi: fx.Node) -> Known | None:
    site = holder(traced_with(phi))
    return Known(site.path, site.region, site.place.k, site.sums_gradients) if site is not None else None


def _ports(crossings: Sequence[Crossing]) -> list[Port]:
    return [Port(each.tensor, each.site, each.phi, each.axis, each.lifted) for each in crossings]


def _examples(gm: fx.GraphModule, takes: Sequence[Crossing], n: int) -> list[Tensor]:
    """Return fake streams for the inputs at the end that bring some."""
    inputs = gm.graph.find_nodes(op="placeholder")
    ends = inputs[len(inputs) - len(takes) :]
    return [describe_streams(new, inputs[each.tensor], n, each.axis) for new, each in zip(ends, takes, strict=True)]
