"""Nodes that a pass adds: where they say they come from, and the example value that tracing would have given them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from mhc_compile.passes.graph import checkpoints
from mhc_compile.passes.graph.walk import VALUES, traced

_ORIGIN = ("nn_module_stack", "stack_trace", "mhc_site")


def inherited(node: fx.Node) -> dict[str, Any]:
    """Return the metadata that a node hands on to what stands for it: module, line, site, tags of checkpoints."""
    return {key: node.meta[key] for key in _ORIGIN if key in node.meta} | checkpoints.tags(node)


def give_value(node: fx.Node) -> None:
    """Run an op of ours, or the choice of one of its results, on the example values of its inputs.

    Where an input has none, the node gets none either. Inputs of the same kind get theirs first.
    """
    if any(key in node.meta for key in VALUES):
        return
    for arg in node.all_input_nodes:
        if arg.target is operator.getitem or arg.target is torch.ops.mhc.coefficients.default:
            give_value(arg)
    held = {arg: traced(arg) for arg in node.all_input_nodes}
    if all(value is not None for value in held.values()):
        with torch.no_grad():
            node.meta["example_value"] = node.target(*fx.map_arg(node.args, held.__getitem__))  # type: ignore[operator]  # an op
