"""One graph of an upgraded model: read its markers, run the pipeline, say what goes in and out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from mhc_compile.backend import kernels
from mhc_compile.backend.carry import Port
from mhc_compile.capture.frames import frame_break, frame_root, is_split, traced_with
from mhc_compile.capture.graphs import copy_graph, describe_streams
from mhc_compile.capture.owners import Stack
from mhc_compile.config import Config
from mhc_compile.errors import (
    CarryError,
    ConfigMismatchError,
    NarrowParametersError,
    PlanMismatchError,
    SiteNotFoundError,
)
from mhc_compile.model.sites import holder
from mhc_compile.passes import PIPELINE, Context
from mhc_compile.passes.base import Binding, Parameters, PlannedSite
from mhc_compile.passes.graph import checkpoints
from mhc_compile.passes.graph.walk import value
from mhc_compile.passes.runner import run
from mhc_compile.plan.model_plan import options_that_differ

_MARKER = torch.ops.mhc.site.default


@dataclasses.dataclass(frozen=True)
class Markers:
    """What the markers of a graph say: its sites, and the options they were made with.

    `gm` is a copy of the graph with the markers in it, and with the bodies of activation checkpoints spliced in.
    """

    gm: fx.GraphModule
    bindings: dict[str, Binding]
    config: Config


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A rewritten graph: further inputs with fake examples, and where streams come from, go to and start."""

    gm: fx.GraphModule
    examples: list[Tensor]
    takes: list[Port]
    gives: list[Port]
    starts: list[Port]


def read_markers(gm: fx.GraphModule, options: Mapping[str, Any] | None) -> Markers | None:
    """Return the sites that a graph's markers name, or None where there are none.

    Args:
        gm: a graph of Dynamo's, left as it is.
        options: those given to torch.compile.

    Raises:
        ConfigMismatchError: the options contradict the parameters that the model holds.
        SiteNotFoundError: a site lies in a graph inside this graph.
        CarryError: the graph was cut for DistributedDataParallel's buckets.
        NarrowParametersError: a site's parameters come in 16 bits.
    """
    if not any(_marked(module) for module in gm.modules()):
        return None
    if is_split(gm):
        raise CarryError(
            "torch cuts the graph of a model in DistributedDataParallel between its gradient buckets, wherever that is,"
            " and streams cannot cross there: set torch._dynamo.config.optimize_ddp = False before the first call"
        )
    copied = copy_graph(gm)
    checkpoints.splice(copied)
    bindings: dict[str, Binding] = {}
    specs: set[str] = set()
    namer = Stack.of(frame_root())
    for node in _marked(copied):
        parameters, label, spec, entry = node.args
        owner = namer.owner(node)
        name = f"{owner}.{label}" if owner else str(label)
        bindings[name] = Binding(_wide(Parameters(*parameters), name), entry)
        specs.add(str(spec))
    for module in dict(checkpoints.bodies(copied)).values():
        for node in _marked(module):
            raise SiteNotFoundError(
                f"site {node.args[1]!r} of {namer.owner(node)!r} runs inside an op with a graph of its own, such as"
                " torch.cond, where it did not when the model was upgraded: remove(model) and upgrade it as it runs now"
            )
    if len(specs) > 1:
        raise PlanMismatchError("one graph holds sites made with different options; compile these models apart")
    function = json.loads(specs.pop())
    asked = Config.from_options(options)
    given = {name: value for name, value in asked.function().items() if name in (options or {})}
    differ = options_that_differ(given, function)
    if differ:
        told = ", ".join(f"{name}={given[name]!r} (the model has {function[name]!r})" for name in differ)
        raise ConfigMismatchError(
            f"the options ask for {told}; drop them from torch.compile's options, or mhc_compile.remove(model) and"
            " upgrade it with the new ones"
        )
    return Markers(copied, bindings, Config.from_options(function, asked))


def _wide(parameters: Parameters, site: str) -> Parameters:
    """Return the parameters, which must have 32 bits or more."""
    dtypes = [tensor.dtype for node in vars(parameters).values() if (tensor := value(node)) is not None]
    narrow = next((dtype for dtype in dtypes if dtype.itemsize < torch.float32.itemsize), None)
    if narrow is not None:
        raise NarrowParametersError(
            f"the parameters of site {site!r} reach this graph as {narrow}, but coefficients in 16 bits would not sum"
            " to 1. Under FSDP2 with a MixedPrecisionPolicy call mhc_compile.shard_sites(model) before fully_shard: it"
            " keeps them in fp32. Elsewhere cast the model by model.to(dtype), which leaves them in fp32"
        )
    return parameters


def rewrite_graph(markers: Markers, *, whole: bool, inline: bool = False) -> Rewritten:
    """Run the pipeline on a graph with markers, once.

    Args:
        markers: the graph and its sites.
        whole: True where all sites of the model are in this graph, so that no streams leave it.
        inline: replace the ops of the IR by plain torch.
    """
    gm = markers.gm
    for node in _marked(gm):
        gm.graph.erase_node(node)
    context = Context(markers.config, Stack.of(frame_root()), markers.bindings, carry_out=not whole, inline=inline)
    if not inline:
        context.devices = kernels.enable(markers.config, gm)
    try:
        run(PIPELINE, gm, context)
    except (SiteNotFoundError, PlanMismatchError) as error:
        raise type(error)(_in_the_model(str(error), markers)) from None
    kernels.report(markers.config, context.unfused)
    if context.devices:
        kernels.name_sites(gm)
    gm.recompile()
    inputs = {node: i for i, node in enumerate(gm.graph.find_nodes(op="placeholder"))}

    def port(tensor: int, site: PlannedSite) -> Port:
        return Port(tensor, site.residual.name, inputs[markers.bindings[site.residual.name].parameters.phi])

    plan = context.plan
    first = {site.source: site for site in reversed(plan.sites) if site.carried}
    takes = [port(inputs[node], first[node]) for node in context.takes]
    starts = [
        port(inputs[site.inflow], site)
        for site in plan.sites
        if site.inflow is not None and site.predecessor is None and not site.carried
    ]
    gives = [port(leaving.output, plan.sites[leaving.site]) for leaving in plan.exits] if not whole else []
    examples = [
        describe_streams(new, node, markers.config.streams, first[node].residual.axis)
        for new, node in zip(list(inputs)[len(inputs) - len(takes) :], context.takes, strict=True)
    ]
    return Rewritten(gm, examples, takes, gives, starts)


def _in_the_model(text: str, markers: Markers) -> str:
    """Call sites as the model does, not as the frame does that is compiled, and say what broke its graph."""
    for name, binding in markers.bindings.items():
        site = holder(traced_with(binding.parameters.phi))
        if site is not None:
            text = text.replace(f"site {name!r}", f"site {site.path!r}")
    broken = frame_break(markers.gm)
    return f"{text} This graph was broken at {broken.source}: {broken.reason}." if broken is not None else text


def _marked(module: nn.Module) -> list[Any]:
    """Return the markers in a module's own graph, if it has one."""
    return (
        list(module.graph.find_nodes(op="call_function", target=_MARKER)) if isinstance(module, fx.GraphModule) else []
    )
