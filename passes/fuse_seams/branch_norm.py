"""The norm that a branch begins with, as a library's function or written out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import number, other, value

_DEFAULT_EPS = 1e-5  # of layer_norm


@dataclasses.dataclass(frozen=True)
class BranchNorm:
    """What a read goes through.

    Attributes:
        kind: "none", "layer", "rms", or "rms_cast" where what is normalised is rounded in front of the weight.
        eps: added to the mean square or variance.
        weight: `[C]`, if any.
        shift: `[C]`, if any.
        result: the node that computes the result, the read itself for "none".
        nodes: all nodes of the norm.
    """

    kind: str
    eps: float
    weight: fx.Node | None
    shift: fx.Node | None
    result: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def operands(self) -> list[fx.Node]:
        """Return weight and shift, where there are any."""
        return [node for node in (self.weight, self.shift) if node is not None]


def readings(u: fx.Node) -> Iterator[BranchNorm]:
    """Iterate over the norms that alone consume a read and return its dtype: with all that belongs to it first.

    Matched are `layer_norm` and `rms_norm` of the last axis, and

        h = u.to(float32)
        h * rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)

    in all spellings, each followed by casts and, for the root mean square, a weight `[C]`. The mean square must be
    computed in fp32 or wider, or it is another function. The last to come is the read alone.
    """
    tensor = value(u)
    if tensor is not None and tensor.is_floating_point():
        start = _library(u) or _written_out(u)
        if start is not None:
            yield from reversed([norm for norm in _extended(start, u) if _is_whole(norm, u)])
    yield BranchNorm("none", 0.0, None, None, u, ())


def why_left_out(u: fx.Node) -> str | None:
    """Return why a norm that reads `u` could not be taken in, a key of `reasons.LEFT_OUT`; None where there is none."""
    reader = next((node for node in _readers_past_casts(u) if _begins_a_norm(node)), None)
    if reader is None:
        return None
    if next(iter(readings(u))).kind != "none":
        return "norm-place"
    if optable.name(reader) not in optable.NORM:
        return "norm-spelling" if _written_out(u) is None else "norm-shared"
    if optable.name(reader) not in ("layer_norm", "rms_norm"):
        return "norm-kind"
    if tuple(optable.argument(reader, 1, "normalized_shape", ())) != (_features(u),):
        return "norm-axes"
    if len(u.users) > 1:
        return "norm-shared"
    vectors = [node for node in _arguments(reader, _wide(u))[:2] if node is not None]
    return "norm-dtype" if all(_is_of_features(node, u) for node in vectors) else "norm-weight"


def _readers_past_casts(u: fx.Node) -> Iterator[fx.Node]:
    for user in u.users:
        yield from user.users if optable.is_cast(user) else (user,)


def _begins_a_norm(node: fx.Node) -> bool:
    """Tell whether a node is a norm, or a square or centring whose mean is taken, as in norms that are written out."""
    if optable.name(node) in optable.NORM:
        return True
    tensor = value(node)
    if tensor is None:
        return False
    squared = optable.name(node) in ("pow", "square", "mul") and any(_is_mean(user) for user in node.users)
    centre = optable.name(node) in ("mean", "var") and optable.reduces_last(node, tensor.dim())
    return squared or centre


def _wide(u: fx.Node) -> torch.dtype:
    """Return the dtype in which a norm of u is computed."""
    tensor = value(u)
    assert tensor is not None  # readings saw it
    return torch.promote_types(tensor.dtype, torch.float32)


def _dtype(node: fx.Node) -> torch.dtype | None:
    tensor = value(node)
    return None if tensor is None else tensor.dtype


def _reader(node: fx.Node | None) -> fx.Node | None:
    """Return the one node that reads a node."""
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def _library(u: fx.Node) -> BranchNorm | None:
    """Match a function of torch's on the read, or on the read in a wider dtype."""
    given, norm, nodes = u, _reader(u), ()  # type: tuple[Any, Any, tuple[fx.Node, ...]]
    if norm is not None and optable.is_cast(norm) and _dtype(norm) == _wide(u):
        given, norm, nodes = norm, _reader(norm), (norm,)
    if norm is None or optable.name(norm) not in ("layer_norm", "rms_norm"):
        return None
    weight, shift, eps = _arguments(norm, _wide(u))
    shape = optable.argument(norm, 1, "normalized_shape", ())
    if optable.argument(norm, 0, "input") is not given or tuple(shape) != (_features(u),) or eps is None:
        return None
    if not all(_is_of_features(node, u) for node in (weight, shift) if node is not None):
        return None
    kind = "layer" if optable.name(norm) == "layer_norm" else "rms"
    return BranchNorm(kind, eps, weight, shift, norm, (*nodes, norm))


def _arguments(norm: fx.Node, wide: torch.dtype) -> tuple[Any, Any, float | None]:
    """Return weight, shift and eps; torch takes the wide dtype's eps where none is given."""
    weight = optable.argument(norm, 2, "weight")
    if optable.name(norm) == "layer_norm":
        return weight, optable.argument(norm, 3, "bias"), number(optable.argument(norm, 4, "eps", _DEFAULT_EPS))
    eps = optable.argument(norm, 3, "eps")
    return weight, None, torch.finfo(wide).eps if eps is None else number(eps)


def _written_out(u: fx.Node) -> BranchNorm | None:
    """Match `h / sqrt(mean(h^2) + eps)`, where each h is the read or a cast of it, step by step."""
    casts = [user for user in u.users if optable.is_cast(user) and user.args[0] is u and _dtype(user) == _wide(u)]
    held = dict.fromkeys((u, *casts))
    square = next((user for h in held for user in h.users if _is_square(user, h)), None)
    mean = _reader(square)
    if square is None or mean is None or not _is_mean(mean):
        return None
    total = _reader(mean)
    eps = number(other(total, mean)) if total is not None and optable.name(total) == "add" else None
    root = _reader(total)
    result = _reader(root)
    if eps is None or total is None or root is None or result is None or not _divides(result, root, total, list(held)):
        return None
    steps = (square, mean, total, root, result)
    if any(_dtype(node) != _wide(u) for node in steps):
        return None
    return BranchNorm("rms", eps, None, None, result, (*casts, *steps))


def _is_square(node: fx.Node, h: fx.Node) -> bool:
    if optable.name(node) == "mul":
        return node.args == (h, h) and not node.kwargs
    return optable.name(node) == "square" or _is_power(node, h, 2)


def _is_power(node: fx.Node, base: fx.Node, exponent: float) -> bool:
    return (
        optable.name(node) == "pow" and node.args[:1] == (base,) and optable.argument(node, 1, "exponent") == exponent
    )


def _is_mean(node: fx.Node) -> bool:
    tensor = value(node)
    if tensor is None or optable.name(node) != "mean" or not optable.reduces_last(node, tensor.dim()):
        return False
    return optable.argument(node, 2, "keepdim", False) is True


def _divides(node: fx.Node, root: fx.Node, total: fx.Node, held: list[fx.Node]) -> bool:
    """Tell whether a node is a tensor h divided by the square root of the total."""
    if optable.name(root) == "sqrt":
        return optable.name(node) in ("div", "truediv") and node.args in [(h, root) for h in held] and not node.kwargs
    inverse = optable.name(root) == "rsqrt" or _is_power(root, total, -0.5)
    return inverse and optable.name(node) == "mul" and other(node, root) in held


def _extended(norm: BranchNorm, u: fx.Node) -> Iterator[BranchNorm]:
    """Iterate over the norm and what casts and a weight behind it make of it."""
    rounded = _dtype(norm.result) != _wide(u)
    while True:
        yield norm
        node = _reader(norm.result)
        if node is None or _dtype(node) not in (_dtype(u), _wide(u)):
            return
        if optable.is_cast(node) and node.args[0] is norm.result:
            rounded |= _dtype(node) != _wide(u)
            norm = dataclasses.replace(norm, result=node, nodes=(*norm.nodes, node))
            continue
        weight = other(node, norm.result) if optable.name(node) == "mul" else None
        if norm.kind != "rms" or norm.weight is not None or not _is_of_features(weight, u):
            return
        kind = "rms_cast" if rounded else "rms"
        norm = dataclasses.replace(norm, kind=kind, weight=weight, result=node, nodes=(*norm.nodes, node))


def _is_whole(norm: BranchNorm, u: fx.Node) -> bool:
    """Tell whether nobody else reads what is inside the norm, and whether its result is like the read."""
    made, given, nodes = value(norm.result), value(u), set(norm.nodes)
    if made is None or given is None or made.shape != given.shape or made.dtype != given.dtype:
        return False
    return all(user in nodes for node in (u, *nodes) if node is not norm.result for user in node.users)


def _is_of_features(node: Any, u: fx.Node) -> bool:
    """Tell whether a node is a vector `[C]` in the read's dtype or the wide one."""
    tensor = value(node) if isinstance(node, fx.Node) else None
    if tensor is None or tensor.dim() != 1 or tensor.shape[0] != _features(u):
        return False
    return tensor.dtype in (_dtype(u), _wide(u))


def _features(u: fx.Node) -> int:
    tensor = value(u)
    assert tensor is not None  # readings saw it
    return tensor.shape[-1]
