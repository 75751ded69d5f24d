"""What canonicalize makes of a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mhc_compile.passes import Results
from mhc_compile.passes.canonicalize import Canonicalize
from tests.nets.structures import Layer, graph, ops, request

Function = Callable[[Any, Tensor], Any]


def respelt(step: Function, x: Tensor) -> tuple[list[str], list[str], float]:
    """The ops before and after, and how far the results are apart."""
    gm = graph(Layer(step), x)
    before, inputs = ops(gm), [n.meta["example_value"] for n in gm.graph.find_nodes(op="placeholder")]
    values = [torch.randn(v.shape, generator=torch.Generator().manual_seed(i)) for i, v in enumerate(inputs)]
    (expected,) = gm(*values)
    Canonicalize()(gm, request(), Results())
    gm.graph.lint()
    gm.recompile()
    (result,) = gm(*values)
    return before, ops(gm), float((result - expected).abs().max() / expected.abs().max())
