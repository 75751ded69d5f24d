"""The mhc IR becomes plain torch, for graphs that run without this package."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import fx

from mhc_compile.ops import connections, reference
from mhc_compile.ops.connections import Maps
from mhc_compile.ops.functions import accumulator
from mhc_compile.ops.signatures import Coefficients, CoefficientsResult, Expand, Read, Readout, Write, named, names
from mhc_compile.passes.base import Request, Results
from mhc_compile.passes.graph import ir
from mhc_compile.passes.graph.effects.modes import Modes
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.walk import value

_COEFFICIENTS = torch.ops.mhc.coefficients.default
_SPLIT = "pippy._pipe_split"  # torch.distributed.pipelining.pipe_split, where somebody has imported it


@dataclasses.dataclass(frozen=True)
class Inline:
    """Replace every op of the IR by its reference in plain torch, where the request asks for it (as export does).

    Elsewhere the ops stay, and nothing is chosen here: `expand`, `read`, `write` and `readout` decompose when
    AOTAutograd traces them, the others run as one op each, whose dispatcher key chooses between a generated kernel
    and its meaning. A graph that is inlined never holds the ops of fuse-seams.
    """

    name: ClassVar[str] = "inline"
    rewrites: ClassVar[bool] = True

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> None:
        """Rewrite the IR's nodes in place."""
        if not request.inline:
            return
        modes = Modes(results[GraphFacts].nodes)
        for node in results[GraphFacts].nodes:
            if str(node.target) == _SPLIT:
                _split_behind_streams(node)
        for node in results[GraphFacts].nodes:
            if node.op == "call_function" and node.target in _BODIES:
                for enter in modes.autocast(node)[-1:] if node.target is _COEFFICIENTS else ():
                    _keep_fp32(node, enter)
                _inline(gm.graph, node, *_BODIES[node.target])


def meaning(node: fx.Node, args: Sequence[Any]) -> Any:
    """Compute what a node of the IR means, in plain torch, which transforms of torch.func can run.

    Args:
        node: an op of a site.
        args: the values of its arguments.
    """
    kind, body = _BODIES[node.target]
    made = body(named(kind, args), value(node))
    return [getattr(made, name) for name in names(type(made))] if isinstance(made, tuple) else made


def _inline(
    graph: fx.Graph, node: fx.Node, kind: type[tuple[Any, ...]], body: Callable[[Any, torch.Tensor | None], Any]
) -> None:
    """Replace a node by its body, traced through proxies; of several results each reader gets its own."""
    tracer = fx.proxy.GraphAppendingTracer(graph)
    given = named(kind, (fx.Proxy(arg, tracer) if isinstance(arg, fx.Node) else arg for arg in node.args))
    with graph.inserting_before(node):
        made = body(given, value(node))
    if isinstance(made, tuple):
        for name, user in ir.results(node, type(made)):
            user.replace_all_uses_with(getattr(made, name).node)
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(made.node)
    graph.erase_node(node)


def _split_behind_streams(split: fx.Node) -> None:
    """Cut a pipeline where only streams cross: a site's maps and what its branch reads are made behind the cut."""
    before = split.prev
    while "mhc_site" in before.meta and before.target is not torch.ops.mhc.write.default:
        before = before.prev
    before.append(split)


def _keep_fp32(node: fx.Node, enter: fx.Node) -> None:
    """Put what replaces a node into a region without autocast, as the op is; `enter` begins the one around it."""
    device, dtype, _, *more = enter.args
    begin: Any = enter.target
    leave: Any = next(user.target for user in enter.users)
    with node.graph.inserting_before(node):
        off = node.graph.call_function(begin, (device, dtype, False, *more))
    with node.graph.inserting_after(node):
        node.graph.call_function(leave, (off,))


def _coefficients(given: Coefficients, _: torch.Tensor | None) -> CoefficientsResult:
    site, how = given.parameters, given.maps
    kind = connections.get(how.connection)
    y, r = reference.logits(kind.rows(given.x), site.phi, how.eps)
    maps = kind.activate(y, site.alpha, site.base + site.delta, Maps(how.n, how.projection, how.iters))
    return CoefficientsResult(*maps, y, r)


def _readout(given: Readout, like: torch.Tensor | None) -> torch.Tensor:
    """Accumulate in a dtype that a proxy cannot tell; the other ops do in the dtype of their coefficients."""
    return reference.readout(given.x, given.n, *([] if like is None else [accumulator(like.dtype)]))


_BODIES: dict[Any, tuple[type[tuple[Any, ...]], Callable[[Any, torch.Tensor | None], Any]]] = {
    torch.ops.mhc.expand.default: (Expand, lambda given, _: reference.expand(given.x, given.n)),
    torch.ops.mhc.read.default: (Read, lambda given, _: reference.read(given.x, given.h_pre, given.n)),
    torch.ops.mhc.write.default: (
        Write,
        lambda given, _: reference.write(given.x, given.f, given.h_post, given.h_res, given.n),
    ),
    torch.ops.mhc.readout.default: (Readout, _readout),
    _COEFFICIENTS: (Coefficients, _coefficients),
}
