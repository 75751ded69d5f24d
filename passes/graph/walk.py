"""Steps through a graph: what a node holds, where it comes from, what lies between two nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx

VALUES = ("example_value", "val")  # the keys under which a node has what it computed when it was traced
_FRAME = re.compile(r'File "(?P<file>[^"]*)", line (?P<line>\d+), in (?P<function>.*)')


class Frame(NamedTuple):
    """One frame of a node's stack: "file.py", the line, and the name of the function."""

    file: str
    line: int
    function: str


def traced(node: fx.Node) -> Any:
    """Return what a node computed when it was traced, None where nobody has noted it."""
    meta = node.meta
    return meta["example_value"] if "example_value" in meta else meta.get("val")


def value(node: fx.Node) -> torch.Tensor | None:
    """Return the fake tensor that a node computes, or None where it computes something else."""
    held = traced(node)
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
    *_, last = (None, *frames(node))
    return f"{last.file}:{last.line}" if last is not None else ""


def frames(node: fx.Node) -> Iterator[Frame]:
    """Iterate over the user's stack when the node was traced, outermost first."""
    for found in _FRAME.finditer(node.meta.get("stack_trace") or ""):
        yield Frame(found["file"], int(found["line"]), found["function"])


def calls(node: fx.Node) -> tuple[tuple[str, str], ...]:
    """Return the calls of modules in which a node was made, outermost first: Dynamo's key and the code's name of each.

    The key is the module's id, with a number behind it where the code calls it by that name again.
    """
    stack = node.meta.get("nn_module_stack") or {}
    return tuple((str(key), str(entry[0])) for key, entry in stack.items())


def graph_of(node: Any) -> fx.GraphModule | None:
    """Return the graph that a node names, for an op to run, if it names one."""
    held: Any = node.graph.owning_module if isinstance(node, fx.Node) and node.op == "get_attr" else None
    for step in str(node.target).split(".") if held is not None else ():
        held = getattr(held, step, None)
    return held if isinstance(held, fx.GraphModule) else None


def nodes_within(held: Any) -> Iterator[fx.Node]:
    """Iterate over the nodes of what a module holds, where that is a graph, and of the graphs in it."""
    for module in held.modules() if isinstance(held, fx.GraphModule) else ():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


def stacks(gm: fx.GraphModule) -> Iterator[tuple[tuple[str, str], ...]]:
    """Iterate over the different calls of modules in which a graph computes, in the graphs inside of it, too."""
    yield from dict.fromkeys(calls(node) for node in nodes_within(gm) if node.op.startswith("call"))


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
