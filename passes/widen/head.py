"""A learned readout: it reads the streams as a branch does, and nothing is written behind it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mhc_compile.config import Config
from mhc_compile.ops.signatures import CoefficientsResult, MapOptions, Read, position
from mhc_compile.passes.base import Parameters
from mhc_compile.passes.graph import ir
from mhc_compile.passes.graph.walk import value
from mhc_compile.passes.widen.emitter import Emitter

_OPS = torch.ops.mhc


def read_by_head(
    emit: Emitter, at: fx.Node, x: Any, head: Parameters, config: Config, coefficients: Callable[..., Any]
) -> Any:
    """Read streams by a head's weights.

    After:
        phi, alpha, delta, base = pad(head)          columns of zeros for the H_post that nobody reads
        pre, _, _ = coefficients(X, phi, alpha, delta, base, projection="identity")
        out = read(X, pre)

    Args:
        emit: of the site whose head it is.
        at: the node behind which all of this comes.
        x: the streams.
        head: the inputs that hold the head's parameters.
        config: with which the site was made.
        coefficients: emits them, for a place, streams, parameters and how they are made.

    Returns:
        The node of what is read. Where kernels are, fuse-seams makes one op of the last write, this and a norm behind.
    """
    n = config.streams
    padded = [_padded(emit, at, node, width) for node, width in zip(vars(head).values(), (n, 2, n, n), strict=True)]
    made = coefficients(at, x, padded, MapOptions.of(config)._replace(projection="identity"))
    pre = emit.op(at, operator.getitem, made, position(CoefficientsResult, "h_pre"))
    return emit.op(at, _OPS.read.default, *ir.args(Read(x, pre, n)))


def _padded(emit: Emitter, at: fx.Node, node: fx.Node, width: int) -> Any:
    """Put zeros behind the columns, or entries, of a parameter."""
    made = emit.op(at, torch.nn.functional.pad, node, (0, width))
    tensor = value(node)
    if tensor is not None:
        made.meta["example_value"] = torch.nn.functional.pad(tensor.detach(), (0, width))
    return made
