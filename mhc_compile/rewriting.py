"""One graph of an upgraded model: read its markers, run the pipeline, say what goes in and out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from mhc_compile.capture import Stack, copy_graph, describe_streams, frame_root
from mhc_compile.config import Config
from mhc_compile.errors import ConfigMismatchError, PlanMismatchError
from mhc_compile.passes import PIPELINE, Context
from mhc_compile.passes.base import Binding, Parameters
from mhc_compile.passes.run import run
from mhc_compile.plan import options_that_differ

_MARKER = torch.ops.mhc.site.default


@dataclasses.dataclass(frozen=True)
class Markers:
    """What the markers of a graph say: its sites, and the options they were made with."""

    bindings: dict[str, Binding]
    config: Config


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A rewritten graph: further inputs with fake examples, and where streams come from and go to."""

    gm: fx.GraphModule
    examples: list[Tensor]
    takes: list[tuple[int, str]]
    gives: list[int]


def read_markers(gm: fx.GraphModule, options: Mapping[str, Any] | None) -> Markers | None:
    """Return the sites that a graph's markers name, or None where there are none.

    Raises:
        ConfigMismatchError: the options contradict the parameters that the model holds.
    """
    bindings: dict[str, Binding] = {}
    specs: set[str] = set()
    namer = Stack.of(frame_root())
    for node in gm.graph.find_nodes(op="call_function", target=_MARKER):
        parameters, label, spec, entry = node.args
        owner = namer.owner(node)
        bindings[f"{owner}.{label}" if owner else str(label)] = Binding(Parameters(*parameters), entry)
        specs.add(str(spec))
    if not bindings:
        return None
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
    return Markers(bindings, Config.from_options(function, asked))


def rewrite_graph(gm: fx.GraphModule, markers: Markers, *, whole: bool, inline: bool = False) -> Rewritten:
    """Run the pipeline on a copy of a graph with markers.

    Args:
        gm: a graph of Dynamo's, left as it is.
        markers: its sites.
        whole: True where all sites of the model are in this graph, so that no streams leave it.
        inline: replace the ops of the IR by plain torch.
    """
    copied = copy_graph(gm)
    here = read_markers(copied, None)
    assert here is not None  # the caller read markers from the same graph
    for node in copied.graph.find_nodes(op="call_function", target=_MARKER):
        copied.graph.erase_node(node)
    context = Context(markers.config, Stack.of(frame_root()), here.bindings, carry_out=not whole, inline=inline)
    run(PIPELINE, copied, context)
    copied.recompile()
    inputs = copied.graph.find_nodes(op="placeholder")
    first = {site.source: site.residual for site in reversed(context.plan.sites) if site.carried}
    takes = [(inputs.index(node), first[node].name) for node in context.takes]
    added = inputs[len(inputs) - len(context.takes) :]
    examples = [
        describe_streams(new, node, markers.config.streams, first[node].axis)
        for new, node in zip(added, context.takes, strict=True)
    ]
    return Rewritten(copied, examples, takes, context.gives)
