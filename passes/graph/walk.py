"""Steps through a graph: what a node holds, where it comes from, what lies between two nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def value(node: fx.Node) -> torch.Tensor | None:
    """Return the fake tensor that a node computes, or None where it computes something else."""
    meta = node.meta
    held = meta["example_value"] if "example_value" in meta else meta.get("val")
    return held if isinstance(held, torch.Tensor) else None


def elements(tensor: torch.Tensor) -> int:
    """Return the number of elements; of symbolic sizes that of the traced run, so that nothing is specialised."""
    number = tensor.numel()
    return int(number.node.hint) if isinstance(number, torch.SymInt) else int(number)


def devices(gm: fx.GraphModule) -> set[torch.device]:
    """Return the devices of a graph's tensors."""
    return {tensor.device for node in gm.graph.nodes if (tensor := value(node)) is not None}


def source_of(node: fx.Node) -> str:
    """Return "file.py:line" of the user's code that made the node, or ""."""
    trace = node.meta.get("stack_trace") or ""
    frames = [line.strip() for line in trace.splitlines() if line.strip().startswith('File "')]
    if not frames:
        return ""
    file, line = frames[-1].split('"', 2)[1], frames[-1].split(", line ", 1)[1].split(",", 1)[0]
    return f"{file}:{line}"


def between(root: fx.Node, ends: tuple[fx.Node, ...], order: dict[fx.Node, int]) -> set[fx.Node]:
    """Return the nodes on the way from root to the ends, both excluded from nothing but root itself.

    What stands before root in the program cannot depend on it, so the walk stays local.
    """
    seen: set[fx.Node] = set()
    stack = list(ends)
    while stack:
        node = stack.pop()
        if node in seen or node is root or order[node] <= order[root]:
            continue
        seen.add(node)
        stack += node.all_input_nodes
    return seen


def operands(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Return the two tensors that a node adds or subtracts."""
    a, b = node.args[:2]
    assert isinstance(a, fx.Node)  # the table of ops saw two nodes
    assert isinstance(b, fx.Node)
    return a, b


def number(arg: Any) -> float | None:
    """Return an argument that is a Python number."""
    return float(arg) if isinstance(arg, (int, float)) else None


def other(node: fx.Node, operand: fx.Node) -> Any:
    """Return the second operand of a binary op without options, None if it has others or is of the operand alone."""
    if len(node.args) != 2 or node.kwargs or operand not in node.args:
        return None
    a, b = node.args
    if a is b:
        return None
    return b if a is operand else a
