"""Transforms of torch.func (vmap, grad, jvp, functionalize) inside a graph: levels that nodes open and close."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import VALUES

_OPENS = frozenset(f"_{kind}_increment_nesting" for kind in ("vmap", "grad", "jvp", "func"))


def are_in(gm: fx.GraphModule) -> bool:
    """Tell whether the graph runs a transform of torch.func."""
    return any(optable.name(node) in _OPENS for node in gm.graph.nodes)


def settle(gm: fx.GraphModule) -> None:
    """Make what happens inside transforms plain to passes, in place.

    Before:                            After:
        x = _wrap_for_grad(a, 1)           x = _wrap_for_grad(a, 1)
        _set_tensor_requires_grad(x)       y = _set_tensor_requires_grad(x)
        f = linear(x, w)                   f = linear(y, w)

    so that nothing is computed of x before it is recorded. And Dynamo leaves example values of a level that is over by
    now, which torch refuses to compute with: a fake tensor of the same shape, which is that of one example of a batch,
    takes their place.
    """
    if not are_in(gm):
        return
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    for node in gm.graph.nodes:
        if optable.name(node) == "_set_tensor_requires_grad":
            tensor: Any = node.args[0]
            for user in [user for user in tensor.users if order[user] > order[node]]:
                user.replace_input_with(tensor, node)
    modes = (getattr(node.meta.get("example_value"), "fake_mode", None) for node in gm.graph.nodes)
    mode = next((mode for mode in modes if mode is not None), None)
    for node in gm.graph.nodes:
        for key in VALUES:
            if mode is not None and key in node.meta:
                node.meta[key] = torch.utils._pytree.tree_map(lambda leaf: _settled(leaf, mode), node.meta[key])


def _settled(leaf: Any, mode: Any) -> Any:
    if not isinstance(leaf, Tensor) or not torch._C._functorch.is_functorch_wrapped_tensor(leaf):
        return leaf
    with mode:
        return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
