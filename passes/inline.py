"""The mhc IR becomes plain torch, for graphs that run without this package."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import fx

from mhc_compile.ops import connections, reference
from mhc_compile.ops.connections import Maps
from mhc_compile.ops.functions import accumulator
from mhc_compile.passes.base import Request, Results
from mhc_compile.passes.graph.walk import value


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
        for node in list(gm.graph.nodes):
            body = _BODIES.get(node.target) if node.op == "call_function" else None
            if body is not None:
                _inline(gm.graph, node, body)


def _inline(graph: fx.Graph, node: fx.Node, body: Callable[..., Any]) -> None:
    """Replace a node by its body, traced through proxies; of several results each reader gets its own."""
    tracer = fx.proxy.GraphAppendingTracer(graph)
    args = [fx.Proxy(arg, tracer) if isinstance(arg, fx.Node) else arg for arg in node.args]
    like = value(node)
    if node.target is torch.ops.mhc.readout.default and like is not None:
        args.append(accumulator(like.dtype))  # the other ops accumulate in the dtype of their coefficients
    with graph.inserting_before(node):
        result = body(*args)
    if isinstance(result, tuple):
        for user in list(node.users):
            user.replace_all_uses_with(result[user.args[1]].node)  # type: ignore[index]  # getitem's
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(result.node)
    graph.erase_node(node)


def _coefficients(
    x: Any,
    phi: Any,
    alpha: Any,
    delta: Any,
    base: Any,
    n: int,
    connection: str,
    projection: str,
    iters: int,
    eps: float,
) -> Any:
    kind = connections.get(connection)
    y, _ = reference.logits(kind.rows(x), phi, eps)
    return kind.activate(y, alpha, base + delta, Maps(n, projection, iters))


_BODIES: dict[Any, Any] = {
    torch.ops.mhc.expand.default: reference.expand,
    torch.ops.mhc.read.default: reference.read,
    torch.ops.mhc.write.default: reference.write,
    torch.ops.mhc.readout.default: reference.readout,
    torch.ops.mhc.coefficients.default: _coefficients,
}
