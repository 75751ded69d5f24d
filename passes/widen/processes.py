"""Sites whose streams lie over processes: each has some of the tokens, or some of the features, of a DTensor.

Of tokens, each process finds what its own give to the gradients of parameters, and these are summed. Of features, it
finds what its own give to the logits of a token: `n^2 + 2n` sums and that of squares are added up over the processes,
and `n^2 + 2n` gradients in the backward. All else of a site acts on each token and feature alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mhc_compile.ops import connections
from mhc_compile.ops.connections import Maps
from mhc_compile.ops.signatures import Coefficients, flat, named
from mhc_compile.passes.base import PlacedSite
from mhc_compile.passes.graph import provenance
from mhc_compile.passes.graph.layouts import sharded
from mhc_compile.passes.graph.layouts.sharded import Lying, Placements
from mhc_compile.passes.graph.walk import value
from mhc_compile.passes.widen.emitter import Emitter


@dataclasses.dataclass(frozen=True)
class Processes:
    """How the streams of a site lie over processes.

    Attributes:
        lying: how its carrier lies.
        features: the carrier's feature axis, counted from the front.
        summed: True where something else sums the gradients of its parameters.
    """

    lying: Lying
    features: int
    summed: bool

    @classmethod
    def of(cls, site: PlacedSite) -> Processes | None:
        """Return how a site's streams lie, None where they are no parts of DTensors."""
        lying, total = sharded.lies(site.residual.carrier), value(site.residual.total)
        if lying is None or total is None:
            return None
        known = site.binding.known if site.binding is not None else None
        return cls(lying, total.dim() + site.residual.axis, known is not None and known.summed)

    @property
    def have_features(self) -> bool:
        """Whether each process has some of the features."""
        return sharded.divides(self.lying.parts, self.features)

    def parameters(self, emit: Emitter, at: fx.Node, given: Sequence[fx.Node]) -> Sequence[Any]:
        """Return parameters whose gradients are those of all tokens."""
        if self.summed or not any(each.is_shard() for each in self.lying.parts):
            return given
        return [emit.op(at, of_all_tokens, each, *self.lying, self.features) for each in given]

    def operand(self, emit: Emitter, at: fx.Node, operand: fx.Node) -> fx.Node:
        """Return what an op on streams needs of a DTensor beside them: a vector of features, else a part alike."""
        tensor = value(operand)
        if tensor is None or sharded.placements(operand) is None:
            return operand
        made: fx.Node
        if tensor.dim() == 1:
            made = emit.op(at, _vector, operand, *self.lying, self.features)
        else:
            made = emit.op(at, sharded.local_part, operand, self.lying.parts)
        provenance.give_value(made)
        return made

    def coefficients(self, emit: Emitter, at: fx.Node, given: Coefficients) -> fx.Node:
        """Emit H_pre, H_post and H_res of streams of which each process has some of the features."""
        made: fx.Node = emit.op(at, coefficients_of_parts, flat(given), *self.lying, self.features)
        return made


def _placed(parts: Placements, features: int, of_features: Any = None, of_tokens: Any = None) -> Placements:
    """Return placements: these where the mesh divides features or tokens, and whole tensors elsewhere."""
    from torch.distributed.tensor import Replicate

    def placed(each: Any) -> Any:
        chosen = (of_features if each.is_shard(features) else of_tokens) if each.is_shard() else None
        return chosen or Replicate()

    return tuple(map(placed, parts))


def of_all_tokens(parameter: Tensor, like: Any, parts: Placements, features: int) -> Tensor:
    """Return a parameter whose gradient is summed over the processes that have other tokens."""
    from torch.distributed.tensor import Partial

    whole = _placed(parts, features)
    return sharded.passed(parameter, like, whole, whole, _placed(parts, features, of_tokens=Partial()))


def _vector(vector: Tensor, like: Any, parts: Placements, features: int) -> Tensor:
    from torch.distributed.tensor import Partial, Shard

    made = _placed(parts, features, Shard(0))
    return sharded.passed(vector, like, made, made, _placed(parts, features, Shard(0), Partial()))


def added(part: Tensor, like: Any, parts: Placements, features: int) -> Tensor:
    """Return a sum over features, of which a process has found its own part."""
    from torch.distributed.tensor import Partial

    whole = _placed(parts, features)
    return sharded.passed(part, like, _placed(parts, features, Partial()), whole, whole)


def coefficients_of_parts(
    arguments: Sequence[Any], like: Any, parts: Placements, features: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return H_pre, H_post and H_res of streams `[..., n, c]`, of which a process has c features.

    As `reference.logits` makes logits of whole streams.

    Args:
        arguments: what the op `coefficients` takes.
        like: a DTensor on the same mesh.
        parts: how the streams' carrier lies.
        features: its feature axis, counted from the front.
    """
    from torch.distributed.tensor import Partial, Shard

    x, (phi, alpha, delta, base), maps = named(Coefficients, arguments)
    kind, whole = connections.get(maps.connection), _placed(parts, features)
    sums, own = _placed(parts, features, Partial()), _placed(parts, features, Shard(1))
    with torch.autocast(x.device.type, enabled=False):
        rows = kind.rows(x).type_as(phi)
        wide = phi.unflatten(0, (rows.shape[-1] // x.shape[-1], -1))
        own_phi = sharded.passed(wide, like, whole, own, own).flatten(0, 1)
        part = torch.cat([torch.matmul(rows, own_phi), (rows * rows).sum(-1, keepdim=True)], -1)
        raw, squares = added(part, like, parts, features).split([phi.shape[1], 1], -1)
        r = torch.rsqrt(squares / phi.shape[0] + maps.eps)
        y = (raw * r).masked_fill(r == 0, 0)
        made = kind.activate(y, alpha, base + delta, Maps(maps.n, maps.projection, maps.iters))
        pre, post, res = (sharded.passed(each, like, whole, whole, sums) for each in made)
        return pre, post, res
