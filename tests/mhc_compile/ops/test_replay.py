"""Ops in a block: their backwards make the streams again, and nothing else is different."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils.checkpoint import CheckpointPolicy

from mhc_compile.ops import limits
from tests.mhc_compile.equations import helpers
from tests.mhc_compile.equations.block import Block, same
from tests.mhc_compile.equations.fused import Fused
from tests.mhc_compile.equations.helpers import normal, spread_out

FP64, BF16 = torch.float64, torch.bfloat16
ops = pytest.mark.parametrize("op", ["seam", "leave"])
plains = pytest.mark.parametrize("plain", [False, True], ids=["streams", "plain"])


@ops
@plains
@pytest.mark.parametrize("writes", [0, 1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("dtype", [FP64, BF16], ids=str)
def test_gradients_are_those_of_the_streams_to_the_bit(
    op: str, plain: bool, writes: int, n: int, dtype: torch.dtype
) -> None:
    if plain and not writes:
        pytest.skip("without a write the head is the streams")
    same(Block(Fused(n, 5, (3, 2), dtype=dtype, norm="rms weight", plain=plain), writes), op)


@plains
@pytest.mark.parametrize("tokens", [(), (0,), (4,)], ids=str)
def test_replay_by_the_equations(plain: bool, tokens: tuple[int, ...]) -> None:
    block = Block(Fused(3, 7, tokens, plain=plain), 3)
    x = helpers.expand(block.head(), 3) if plain else block.head()
    for f, post, res, offset, scale, multiplier in zip(*block.history()[:6], strict=True):
        f = (f if offset is None else f + offset) * multiplier
        x = helpers.write(x, f if scale is None else f * scale, post, res, 3)
    made = torch.ops.mhc.replay(block.head(), *block.history(), 3)
    helpers.near(made, x, 1e-12)


def test_inputs_that_are_not_contiguous() -> None:
    block = Block(Fused(3, 6, (4, 2)), 2)
    fs, posts, ress, *rest = block.history()
    spread = [[spread_out(t) for t in column] for column in (fs, posts, ress)]
    made = torch.ops.mhc.replay(spread_out(block.head()), *spread, *rest, 3)
    assert torch.equal(made, torch.ops.mhc.replay(block.head(), *block.history(), 3))


def test_replay_has_no_gradient() -> None:
    block = Block(Fused(2, 4, (3,)), 2)
    head = block.head().requires_grad_()
    with pytest.raises(NotImplementedError, match="replay makes streams again for a backward and has no gradient"):
        torch.ops.mhc.replay(head, *block.history(), 2).square().sum().backward()


@plains
def test_opcheck(plain: bool) -> None:
    block = Block(Fused(3, 5, (2, 3), plain=plain), 2)
    torch.library.opcheck(torch.ops.mhc.replay.default, (block.head(), *block.history(), 3))


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

    case, site = block.case, block.case.site()
    fs, posts, ress, offsets, scales, multipliers, _ = block.history()

    def run(head: Tensor, fs: Any, posts: Any, ress: Any) -> Tensor:
        """Write all but the last branch, then the last in a block."""
        past: Any = fs[:-1], posts[:-1], ress[:-1], offsets[:-1], scales[:-1], multipliers[:-1]
        x = head.sin()
        for i in range(len(fs) - 1):
            tail = offsets[i], scales[i], multipliers[i]
            x = torch.ops.mhc.seam(x, fs[i], posts[i], ress[i], *tail, *site, *case.options[:-1], False)[0]
        start, more = head.sin(), past
        if replays:
            start = torch.ops.mhc.replay(start, *past, False, case.n)
            more = [[] for _ in past]
        last = fs[-1], posts[-1], ress[-1], offsets[-1], scales[-1], multipliers[-1]
        made: Tensor = torch.ops.mhc.seam_in_block(x, *last, *site, *case.options[:-1], False, start, *more, False)[0]
        return made.cos()

    torch._dynamo.reset()
    given = block.head().requires_grad_(), [f.requires_grad_() for f in fs], posts, ress
    out = torch.compile(run, backend=backend, dynamic=dynamic, fullgraph=True)(*given)
    found = torch.autograd.grad(out, [given[0], *given[1]], normal(*out.shape, seed=3).to(out.dtype))
    expected = run(*given)
    wanted = torch.autograd.grad(expected, [given[0], *given[1]], normal(*out.shape, seed=3).to(out.dtype))
    for a, b in zip((out, *found), (expected, *wanted), strict=True):
        helpers.near(a, b, 1e-12)
    return graphs


def targets(gm: fx.GraphModule) -> list[str]:
    return [str(n.target).removesuffix(".default") for n in gm.graph.nodes if "mhc" in str(n.target)]


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_forward_is_a_seam_and_keeps_no_streams_but_the_head(dynamic: bool) -> None:
    forward, backward = traced(Block(Fused(2, 6, (5,), norm="none"), 3), replays=False, dynamic=dynamic)
    assert targets(forward) == ["mhc.seam"] * 3
    assert "mhc.seam_backward" in targets(backward)
    (node, *_) = backward.graph.find_nodes(op="call_function", target=torch.ops.mhc.seam_backward.default)
    assert [len(column) for column in node.args[-7:-1]] == [2] * 6


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
