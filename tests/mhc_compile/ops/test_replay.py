"""Ops in a block: their backwards make the streams again, and nothing else is different."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils.checkpoint import CheckpointPolicy

from mhc_compile.ops import limits
from mhc_compile.ops.registration import call
from mhc_compile.ops.signatures import (
    NO_HISTORY,
    LeaveInBlock,
    Options,
    Replay,
    Seam,
    SeamBackward,
    SeamInBlock,
    SiteInputs,
    flat,
    named,
    names,
)
from tests.equations import helpers
from tests.equations.block import Block, same
from tests.equations.fused import Fused
from tests.equations.helpers import normal, spread_out
from tests.pairwise import pairwise

FP64, BF16 = torch.float64, torch.bfloat16
AXES: dict[str, Any] = {
    "op": ["seam", "leave"], "equal": [False, True], "writes": [0, 1, 2, 3], "n": [1, 2, 4], "dtype": [FP64, BF16]
}  # fmt: skip


def has_writes(row: Any) -> bool:
    """Without a write the head is the streams, which are not equal."""
    return not (row["equal"] and row["writes"] == 0)


@pairwise(has_writes, **AXES)
def test_gradients_are_those_of_the_streams_to_the_bit(
    op: str, equal: bool, writes: int, n: int, dtype: torch.dtype
) -> None:
    same(Block(Fused(n, 5, (3, 2), dtype=dtype, norm="rms weight", equal_streams=equal), writes), op)


@pairwise(equal=[False, True], tokens=[(), (0,), (4,)])
def test_replay_by_the_equations(equal: bool, tokens: tuple[int, ...]) -> None:
    block = Block(Fused(3, 7, tokens, equal_streams=equal), 3)
    x = helpers.expand(block.head(), 3) if equal else block.head()
    for f, post, res, tail in block.history().writes():
        f = (f if tail.offset is None else f + tail.offset) * tail.multiplier
        x = helpers.write(x, f if tail.scale is None else f * tail.scale, post, res, 3)
    helpers.near(call("replay", Replay(block.head(), block.history(), 3)), x, 1e-12)


def test_inputs_that_are_not_contiguous() -> None:
    block = Block(Fused(3, 6, (4, 2)), 2)
    past = block.history()
    spread: Any = {name: [spread_out(t) for t in getattr(past, name)] for name in ("fs", "posts", "ress")}
    made = call("replay", Replay(spread_out(block.head()), past._replace(**spread), 3))
    assert torch.equal(made, call("replay", Replay(block.head(), past, 3)))


@pytest.mark.parametrize("op", ["seam", "leave"])
def test_a_result_that_nobody_asks_a_gradient_of(op: str) -> None:
    """Torch hands over None for it, which stands for zeros."""

    class Unused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> None:
            return None

    block = Block(Fused(2, 5, (3,)), 1)
    given = block.case.signature(op)
    given = given._replace(written=given.written._replace(f=given.written.f.requires_grad_()))
    in_block: Any = SeamInBlock if op == "seam" else LeaveInBlock
    made = call(f"{op}_in_block", in_block(given._replace(x=block.streams()), block.head(), block.history()))
    apply: Any = Unused.apply
    (gradient,) = torch.autograd.grad(apply(made.x if op == "seam" else made).sum(), given.written.f)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_replay_has_no_gradient() -> None:
    block = Block(Fused(2, 4, (3,)), 2)
    head = block.head().requires_grad_()
    with pytest.raises(NotImplementedError, match="replay makes streams again for a backward and has no gradient"):
        call("replay", Replay(head, block.history(), 2)).square().sum().backward()


@pytest.mark.parametrize("equal", [False, True], ids=["streams", "equal"])
def test_opcheck(equal: bool) -> None:
    block = Block(Fused(3, 5, (2, 3), equal_streams=equal), 2)
    torch.library.opcheck(torch.ops.mhc.replay.default, tuple(flat(Replay(block.head(), block.history(), 3))))


@pytest.mark.parametrize(("op", "in_block"), [("seam", SeamInBlock), ("leave", LeaveInBlock)])
def test_without_gradients_an_op_in_a_block_is_the_op_alone(
    op: str, in_block: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autograd's function costs more than the op where tokens are few."""
    monkeypatch.delattr(f"mhc_compile.ops.replay._{op.title()}.forward")
    block = Block(Fused(3, 5, (2, 3)), 2)
    given: Any = block.case.signature(op)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            made = getattr(torch.ops.mhc, f"{op}_in_block")(*flat(in_block(given, block.head(), block.history())))
            assert all(map(torch.equal, made, getattr(torch.ops.mhc, op)(*flat(given))))


# -- what the partitioner sees ----------------------------------------------------------------------------------------


def traced(block: Block, replays: bool, dynamic: bool = False) -> list[fx.GraphModule]:
    """Forward and backward graph of a seam in a block, whose head may be made again itself."""
    graphs: list[fx.GraphModule] = []

    def keep(gm: fx.GraphModule, _: Any) -> Any:
        graphs.append(gm)
        return make_boxed_func(gm.forward)

    compiler = aot_autograd(
        fw_compiler=keep, bw_compiler=keep, partition_fn=min_cut_rematerialization_partition, decompositions=None
    )

    def backend(gm: fx.GraphModule, inputs: Any) -> Any:
        for node in gm.graph.find_nodes(op="call_function", target=torch.ops.mhc.replay):
            node.meta |= {"recompute": CheckpointPolicy.MUST_RECOMPUTE, "ac_graph_id": 1}
        return compiler(gm, inputs)

    run = in_a_block(block, replays)
    torch._dynamo.reset()
    past = block.history()
    given = block.head().requires_grad_(), [f.requires_grad_() for f in past.fs], past.posts, past.ress
    out = torch.compile(run, backend=backend, dynamic=dynamic, fullgraph=True)(*given)
    found = torch.autograd.grad(out, [given[0], *given[1]], normal(*out.shape, seed=3).to(out.dtype))
    expected = run(*given)
    wanted = torch.autograd.grad(expected, [given[0], *given[1]], normal(*out.shape, seed=3).to(out.dtype))
    for a, b in zip((out, *found), (expected, *wanted), strict=True):
        helpers.near(a, b, 1e-12)
    return graphs


def in_a_block(block: Block, replays: bool) -> Callable[..., Tensor]:
    """Write all but the last branch of a block's history, then the last in the block; all is named, for Dynamo."""
    tails = [written.tail._asdict() for written in block.history().writes()]
    given: Seam = block.case.signature("seam")
    options = given.options._replace(equal_streams=False)
    site = dict(zip((*names(SiteInputs), *names(Options)), (*flat(given.site), *flat(options)), strict=True))
    none = NO_HISTORY._asdict()

    def run(head: Tensor, fs: Any, posts: Any, ress: Any) -> Tensor:
        maps = [{"f": f, "h_post": post, "h_res": res} for f, post, res in zip(fs, posts, ress, strict=True)]
        x = start = head.sin()
        for i in range(len(fs) - 1):
            x = torch.ops.mhc.seam(x=x, **maps[i], **tails[i], **site)[0]
        columns = {f"{name}s": [tail[name] for tail in tails[:-1]] for name in ("offset", "scale", "multiplier")}
        past = {"fs": fs[:-1], "posts": posts[:-1], "ress": ress[:-1], **columns, "equal_head": False}
        if replays:
            start, past = torch.ops.mhc.replay(head=start, **past, n=options.n), none
        made: Tensor = torch.ops.mhc.seam_in_block(x=x, **maps[-1], **tails[-1], **site, head=start, **past)[0]
        return made.cos()

    return run


def targets(gm: fx.GraphModule) -> list[str]:
    return [str(n.target).removesuffix(".default") for n in gm.graph.nodes if "mhc" in str(n.target)]


@pytest.mark.core(1)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_the_forward_is_a_seam_and_keeps_no_streams_but_the_head(dynamic: bool) -> None:
    forward, backward = traced(Block(Fused(2, 6, (5,), norm="none"), 3), replays=False, dynamic=dynamic)
    assert targets(forward) == ["mhc.seam"] * 3
    assert "mhc.seam_backward" in targets(backward)
    (node, *_) = backward.graph.find_nodes(op="call_function", target=torch.ops.mhc.seam_backward.default)
    *columns, _ = named(SeamBackward, node.args).history
    assert [len(column) for column in columns] == [2] * 6


def test_a_head_that_is_made_again_is_made_in_the_backward_only() -> None:
    forward, backward = traced(Block(Fused(2, 6, (5,), norm="none"), 3), replays=True)
    assert targets(forward) == ["mhc.seam"] * 3
    assert targets(backward).count("mhc.replay") == 1


# -- the limit --------------------------------------------------------------------------------------------------------


def test_limit() -> None:
    """Arithmetic grows with n^2 and with every write, traffic with n: many streams are replayed less."""
    assert limits.replay_limit(4, 2) == 2
    for itemsize in (2, 4):
        found = [limits.replay_limit(n, itemsize) for n in range(1, 17)]
        assert found == sorted(found, reverse=True)
        assert {found[0], found[-1]} == {limits.MOST_WRITES, 1}
    assert all(limits.replay_limit(n, 4) >= limits.replay_limit(n, 2) for n in range(1, 17))
