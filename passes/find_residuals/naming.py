"""What a connection is called, and the place by which it is known again in another run."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Sequence

import torch
from torch import fx

from mhc_compile.passes.base import Call, Namer, Spot
from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.statements import place
from mhc_compile.passes.graph.walk import traced

_NODES = 64  # that are looked at behind a branch


class Places:
    """Where the connections of a graph stand, asked for in program order."""

    def __init__(self, nodes: Iterable[fx.Node], namer: Namer) -> None:
        """Number the calls of each module, in every call of the model."""
        self.namer = namer
        self._numbers: dict[tuple[object, str], dict[object, int]] = {}
        self._stood: Counter[tuple[object, str, str]] = Counter()
        before: object = None
        for node in nodes:
            stack = node.meta.get("nn_module_stack")
            if node.op != "placeholder" and stack != before:
                self._count(namer.call(node), namer.owner(node))
                before = stack

    def _count(self, call: Call, owner: str) -> int:
        calls = self._numbers.setdefault((call.model, owner), {})
        return calls.setdefault(call.key, len(calls))

    def spot(self, total: fx.Node, branch: fx.Node) -> Spot:
        """Return the place of a sum, of which a term is the branch."""
        owner, call = self.namer.owner(total), self.namer.call(total)
        child, _ = _work(branch, owner, self.namer)
        statement = place(total, call.forward)
        stood = call.key, statement, child
        self._stood[stood] += 1
        return Spot(self._count(call, owner), statement, child, self._stood[stood] - 1)


def _work(branch: fx.Node, owner: str, namer: Namer) -> tuple[str, fx.Node]:
    """Return who does the branch's last real work: the owner's submodule, "" for the owner itself, and the node."""
    seen: set[fx.Node] = set()
    queue = deque([branch])
    first = ""
    while queue and len(seen) < _NODES:
        node = queue.popleft()
        if node in seen or _is_number(node):
            continue
        seen.add(node)
        child = namer.child(node, owner) if node.op != "placeholder" else None
        first = first or child or ""
        if optable.works(node) and optable.name(node) not in optable.NEW:
            return child or first, node
        queue.extend(node.all_input_nodes)
    return first, branch


def _is_number(node: fx.Node) -> bool:
    """Tell whether a node is a number, such as a scale that Dynamo takes for a variable once it has changed."""
    return (
        isinstance(traced(node), (torch.SymInt, torch.SymFloat, torch.SymBool, int, float))
        or optable.name(node) == "item"
    )


def label(child: str, branch: fx.Node, owner: str, namer: Namer) -> str:
    """Name a connection by who does its branch's last work: a submodule, else the parameter or the op that it is."""
    if not child:
        _, node = _work(branch, owner, namer)
        held = (namer.parameter(_source(arg), owner) for arg in reversed(node.all_input_nodes))
        child = next((name for name in held if name), "") or optable.name(node) or "branch"
    return re.sub(r"\W", "_", child)


def _source(node: fx.Node) -> fx.Node:
    """Return what a node is a view, cast or other function of alone."""
    while len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
    return node


def distinct(labels: Sequence[tuple[str, str]]) -> list[str]:
    """Number, in program order, the labels that an owner has several times, past those that it has anyway."""
    taken, seen = set(labels), Counter[tuple[str, str]]()
    names = []
    for owner, label in labels:
        name, count = label, seen[owner, label]
        while count and (owner, name := f"{label}_{count}") in taken:
            count += 1
        taken.add((owner, name))
        seen[owner, label] = count + 1
        names.append(name)
    return names
