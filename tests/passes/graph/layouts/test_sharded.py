"""Parts of DTensors, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from mhc_compile.passes.graph.layouts import sharded


def lain(mesh: Any, x: Tensor, dim: int | None = None) -> Any:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    return DTensor.from_local(x, mesh, [Replicate() if dim is None else Shard(dim)])  # of one process, all is local


def test_plain_tensors_are_their_own_parts() -> None:
    x = torch.randn(2, 3)
    assert sharded.placements_of(x) is None
    assert sharded.held(x) is sharded.whole(x) is x
    assert sharded.gathering(x)(x) is x


def test_a_dtensor_is_got_whole_where_it_has_values(mesh: Any) -> None:
    x = torch.randn(2, 3)
    assert torch.equal(sharded.whole(lain(mesh, x, 1)), x)
    meta = lain(mesh, x.to("meta"), 1)
    assert sharded.whole(meta) is meta


def test_partial_sums_are_got_whole(mesh: Any) -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard

    assert sharded.settled((Partial(), Shard(1), Replicate())) == (Replicate(), Shard(1), Replicate())


@pytest.mark.parametrize("dim", [None, 0, 1])
def test_parts_make_the_whole_with_its_gradient(mesh: Any, dim: int | None) -> None:
    x = torch.randn(4, 6).t().requires_grad_()
    given = lain(mesh, x, dim)
    part = sharded.held(given)
    assert type(part) is Tensor
    whole = sharded.of_parts(part * 2, given, given.placements, given.placements)
    assert (whole.placements, whole.shape) == (given.placements, given.shape)
    torch.testing.assert_close(whole.full_tensor(), 2 * x)
    upstream = torch.randn(6, 4)
    (found,) = torch.autograd.grad(whole, x, lain(mesh, upstream, dim))
    torch.testing.assert_close(found, 2 * upstream)
    again: Any = sharded.gathering(given)(part.detach())
    assert again.placements == given.placements


def test_what_is_passed_gets_its_gradient_back(mesh: Any) -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard

    x, upstream = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    for made, grads in (((Replicate(),), (Partial(),)), ((Shard(1),), (Shard(1),))):
        for tensor, given in ((x, (Replicate(),)), (lain(mesh, x), None)):
            part = sharded.passed(tensor, lain(mesh, x), given or (), made, grads)
            (found,) = torch.autograd.grad(part * 3, x, upstream)
            torch.testing.assert_close(found, 3 * upstream)


def test_of_what_a_tensor_is_like_nothing_is_read() -> None:
    graph = fx.Graph()
    like, part, other = (graph.placeholder(name) for name in ("like", "part", "other"))
    whole = graph.call_function(sharded.of_parts, (part, like, ("parts",), ("lying",)))
    total = graph.call_function(torch.add, (whole, like))
    assert sharded.reads(whole) == [part]
    assert sharded.reads(total) == [whole, like]
    for reader in (whole, total):
        sharded.redirect(reader, part, other)
        sharded.redirect(reader, like, other) if reader is total else None
    assert whole.args == (other, like, ("parts",), ("lying",))
    assert total.args == (whole, other)


def test_how_a_part_lies_is_told_by_what_makes_it_or_reads_it() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    part = graph.call_function(sharded.local_part, (x, ("parts",)))
    total = graph.call_function(torch.add, (part, part))
    assert sharded.lies(total) is None
    graph.call_function(sharded.of_parts, (total, x, ("others",), ("lying",)))
    assert sharded.lies(part) == (x, ("parts",))
    assert sharded.lies(total) == (x, ("others",))


def test_only_a_name_or_a_move(mesh: Any) -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard

    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = lain(mesh, torch.randn(2, 3), 1)
    places: Any = (Shard(1),), (Replicate(),), (Partial(),)
    at, whole, sums = places
    for parts, lying, kept in ((at, at, True), (whole, at, False), (whole, sums, True), (at, whole, False)):
        assert sharded.keeps_parts(graph.call_function(sharded.of_parts, (x, x, parts, lying))) is kept
    for parts, kept in ((at, True), (whole, False)):
        assert sharded.keeps_parts(graph.call_function(sharded.local_part, (x, parts))) is kept
