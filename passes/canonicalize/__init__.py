"""One spelling of each add, and no overwriting that nobody needs."""

from __future__ import annotations

import dataclasses
import operator
from typing import ClassVar

from torch import fx

from mhc_compile.passes.base import Request, Results
from mhc_compile.passes.canonicalize import fused_sums, overwriting, sharded_sums, spellings, twins
from mhc_compile.passes.graph import checkpoints, optable
from mhc_compile.passes.graph.facts import GraphFacts


@dataclasses.dataclass(frozen=True)
class Canonicalize:
    """`torch.add(a, b)`, `a.add(b)`, `a += b` and `a.add_(b)` become `a + b`, `relu(x, inplace=True)` `relu(x)`.

    Sums that are spelt as something else become adds as well (see `spellings` and `fused_sums`), and a norm that is
    written twice, for the skip and for the branch, becomes one (see `twins`). Of DTensors, parts are added (see
    `sharded_sums`).

    An op stays in place where what it overwrites is read afterwards under another name, belongs to the caller, or is
    overwritten without gradients: then the overwriting is part of the function (see `overwriting`).
    Activation checkpoints go first: what their bodies hold is part of the graph (see `checkpoints.splice`).
    """

    name: ClassVar[str] = "canonicalize"
    rewrites: ClassVar[bool] = True

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> None:
        """Respell the ops of the graph."""
        checkpoints.splice(gm)
        overwriting.take_apart(GraphFacts(gm))
        facts = GraphFacts(gm)  # less is overwritten now
        for node in facts.nodes:
            if overwriting.overwrites(node):
                spellings.spell_in_place(node)
                continue
            spellings.spell_out(node, facts)
            fused_sums.take_apart(node, facts)
            if optable.is_add(node):
                node.op, node.target = "call_function", operator.add
                node.args, node.kwargs = node.args[:2], {}
            sharded_sums.take_apart(node, facts)
        twins.merge(GraphFacts(gm))
