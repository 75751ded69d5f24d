"""Sums of DTensors: each process adds its own parts."""

from __future__ import annotations

import operator
from typing import Any, cast

from torch import fx

from mhc_compile.passes.graph import optable, provenance
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.graph.layouts import sharded


def take_apart(node: fx.Node, facts: GraphFacts) -> None:
    """Let a sum of DTensors be one of plain tensors, and what reads its terms read them by way of these.

    Before:                          After:
        f = branch(x)                    a = local_part(x)
        s = x + f                        f = branch(of_parts(a))
                                         b = local_part(f)
                                         s = of_parts(a + b)
    """
    lying = sharded.placements(node)
    if lying is None or not (optable.is_add(node) or optable.is_difference(node)):
        return
    terms = [term for term in node.args[:2] if isinstance(term, fx.Node) and sharded.placements(term) is not None]
    if len(terms) < 2:
        return
    if not facts.overwritten.isdisjoint((node, *terms)):
        return
    parts = sharded.settled(lying)
    held = [_part(term, parts, node) for term in terms]
    total = _new(node, node, operator.sub if optable.is_difference(node) else operator.add, *held)
    first = terms[0]
    like = first.args[1] if first.target is sharded.of_parts else first
    node.op, node.target, node.args, node.kwargs = "call_function", sharded.of_parts, (total, like, parts, lying), {}


def _part(term: fx.Node, parts: sharded.Placements, total: fx.Node) -> fx.Node:
    """Return this process's part of a term, and let all others read the term by way of it."""
    if term.target is sharded.of_parts and term.args[2] == parts:
        return cast("fx.Node", term.args[0])
    for user in term.users:
        if user.target is sharded.local_part and user.args[1] == parts:
            return user
    others = [user for user in term.users if user is not total]
    at = term.next
    while at.op == "placeholder":
        at = at.next
    origin = total if term.op == "placeholder" else term
    part = _new(at, origin, sharded.local_part, term, parts)
    lying = sharded.placements(term) or ()
    if others and not any(each.is_partial() for each in lying):
        again = _new(at, origin, sharded.of_parts, part, term, parts, lying)
        for user in others:
            user.replace_input_with(term, again)
    return part


def _new(at: fx.Node, like: fx.Node, target: Any, *args: Any) -> fx.Node:
    """Create a node in front of `at`, of the same origin as `like`."""
    with at.graph.inserting_before(at):
        made = at.graph.call_function(target, args)
    made.meta = provenance.inherited(like)
    provenance.give_value(made)
    return made
