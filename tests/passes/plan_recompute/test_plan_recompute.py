"""The policy of selective recompute as it stands in the graph: tags with their blocks, and what a seam replays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import CheckpointPolicy

from mhc_compile.ops import limits
from mhc_compile.ops.signatures import LeaveInBlock, Replay, SeamInBlock, SeamResult
from mhc_compile.passes.graph import checkpoints, ir, optable
from tests.nets.chains import Branches, Chain, Middle, Tower
from tests.nets.structures import C, graph, rewritten, tokens
from tests.passes.fuse_seams.fusing import Pair, given, ours, pair

SAVE, AGAIN = CheckpointPolicy.MUST_SAVE, CheckpointPolicy.MUST_RECOMPUTE


def planned(model: nn.Module, *args: Tensor, **options: Any) -> fx.GraphModule:
    return rewritten(graph(model, *(args or (tokens(),))), **{"streams": 2, **options})[0]


def policy(gm: fx.GraphModule) -> list[str]:
    """Every op with a tag, in short: "write again 1" has the smallest number, "readout kept" none."""
    nodes = [node for node in gm.graph.nodes if "recompute" in node.meta]
    numbers = sorted({node.meta["ac_graph_id"] for node in nodes if "ac_graph_id" in node.meta})
    words = {SAVE: "kept", AGAIN: "again", CheckpointPolicy.PREFER_RECOMPUTE: "user"}
    told = []
    for node in nodes:
        number = node.meta.get("ac_graph_id")
        where = f" {numbers.index(number) + 1}" if number is not None else ""
        told.append(f"{optable.name(node)} {words[node.meta['recompute']]}{where}")
    return told


def numbers_of_blocks(gm: fx.GraphModule) -> list[int]:
    """Of every write, 0 where it says none."""
    return [given(node).block for node in gm.graph.find_nodes(op="call_function", target=torch.ops.mhc.write.default)]


def test_blocks_of_two() -> None:
    """What a block hands to the next has a smaller number than its reader: the partitioner keeps it."""
    gm = planned(Chain(), recompute=2)
    assert policy(gm) == [
        "expand again 1", "read again 1", "write again 1",
        "read again 1", "write again 1",
        "read again 2", "write again 2", "readout kept",
    ]  # fmt: skip
    assert numbers_of_blocks(gm) == [1, 1, 2]


def test_off() -> None:
    gm = planned(Chain(), recompute="off")
    assert policy(gm) == []
    assert numbers_of_blocks(gm) == [0, 0, 0]


def test_nothing_for_graphs_that_run_without_us() -> None:
    gm, _ = rewritten(graph(Chain(), tokens()), inline=True, streams=2, recompute=2)
    assert policy(gm) == []


def test_lifted_ops_belong_to_the_site_in_front_of_which_they_stand() -> None:
    """A block keeps the sum; the next makes its norm again."""
    assert policy(planned(Chain(post=True), recompute=2)) == [
        "expand again 1", "read again 1", "write again 1",
        "layer_norm again 1", "read again 1", "write again 1",
        "layer_norm again 2", "read again 2", "write again 2", "readout kept",
    ]  # fmt: skip


def test_branches_and_coefficients_have_no_tags() -> None:
    for model in (Chain(), Chain(post=True)):
        tagged = {optable.name(n) for n in planned(model, recompute=3).graph.nodes if "recompute" in n.meta}
        assert tagged <= {"expand", "read", "write", "readout", "layer_norm"}


def test_checkpointed_branches_end_before_their_block_does() -> None:
    """So the block keeps what they return; their own tags stay."""
    told = policy(planned(Branches(2), recompute=2))
    assert [word for word in told if not word.startswith(("linear", "gelu"))] == [
        "expand again 3", "read again 3", "write again 3", "read again 3", "write again 3", "readout kept",
    ]  # fmt: skip
    assert [word for word in told if word.startswith(("linear", "gelu"))] == [
        f"{op} user {i}" for i in (1, 2) for op in ("linear", "gelu", "linear")
    ]


def test_inside_of_a_checkpoint_the_user_decides() -> None:
    """Blocks end in front of it and start anew behind it."""
    told = policy(planned(Middle(5), recompute=5))
    assert [word for word in told if "user" not in word] == [
        "expand again 1", "read again 1", "write again 1",
        "read again 5", "write again 5", "readout kept",
    ]  # fmt: skip
    assert {word.rpartition(" ")[2] for word in told if "user" in word} == {"2", "3", "4"}


def test_towers_have_blocks_of_their_own() -> None:
    told = policy(planned(Tower(), tokens(), tokens(length=3), recompute=2))
    assert [word for word in told if word.startswith("write")] == [f"write again {i}" for i in (1, 1, 2, 2, 3, 3)]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_block_has_so_many_sites(size: int) -> None:
    assert numbers_of_blocks(planned(Chain(7), recompute=size)) == [1 + i // size for i in range(7)]


def test_automatic_size() -> None:
    """Of 12 sites with 4 streams: 4 ceil(12 / L) + 6 L is least at L = 3."""
    assert numbers_of_blocks(planned(Chain(12), streams=4, recompute="auto")) == [1 + i // 3 for i in range(12)]


@pytest.mark.core(1)
@pytest.mark.parametrize(
    "make", [Chain, Branches, pytest.param(lambda n: Chain(n, post=True), id="Chain(n, post=True)")]
)
def test_decisions_are_in_the_text(make: Callable[[int], nn.Module]) -> None:
    """What caches go by."""
    texts = {str(planned(make(4), recompute=how).graph) for how in ("off", 1, 2, 3)}
    assert len(texts) == 4


# -- replay -----------------------------------------------------------------------------------------------------------


def replayed(model: nn.Module, *args: Tensor, limit: int = 8, **options: Any) -> Pair:
    """Graphs without and with fused ops whose backwards replay."""
    with mock.patch.object(limits, "replay_limit", return_value=limit):
        return pair(model, *(args or (tokens(),)), **options)


def block_of(node: fx.Node) -> tuple[str, str, list[str]]:
    """An op, the head of its block and the branches of the writes since."""
    taken = given(node)
    if isinstance(taken, (SeamInBlock, LeaveInBlock)):
        return optable.name(node), str(taken.head), [str(f) for f in taken.history.fs]
    return optable.name(node), str(taken.head if isinstance(taken, Replay) else taken.x), []


def without_block(node: fx.Node) -> Any:
    """What a seam or leave takes beside its block."""
    taken = given(node)
    return getattr(taken, optable.name(node).removesuffix("_in_block"), taken)


def test_seams_name_the_head_of_their_block_and_the_branches_since() -> None:
    gm = replayed(Chain(5), recompute=3).after
    found = [block_of(node) for node in gm.graph.nodes if "mhc" in str(node.target)]
    seam, leave = ([n for n in gm.graph.nodes if optable.name(n).startswith(name)] for name in ("seam", "leave"))
    outputs = [str(without_block(node).written.f) for node in (*seam, *leave)]
    x = [str(dict(ir.results(node, SeamResult))["x"]) for node in seam]
    first, *_ = seam
    start = str(without_block(first).x)
    assert (
        found
        == [
            ("enter", start, []),
            ("seam", start, []),  # writes to the first site's streams
            ("seam_in_block", start, outputs[:1]),
            ("seam_in_block", start, outputs[:2]),  # makes the next head
            ("seam", x[2], []),
            ("leave_in_block", x[2], outputs[3:4]),
        ]
    )


def test_beyond_what_a_kernel_replays_streams_are_made_again() -> None:
    """In the backward, by an op that is tagged."""
    gm = replayed(Chain(6), limit=1, recompute=6).after
    found = [block_of(node) for node in gm.graph.nodes if "mhc" in str(node.target)]
    replays = [str(node) for node in gm.graph.nodes if optable.name(node) == "replay"]
    assert [(op, len(fs)) for op, _, fs in found if op != "replay"] == [
        ("enter", 0), ("seam", 0), ("seam_in_block", 1),
        ("seam_in_block", 0), ("seam_in_block", 1), ("seam_in_block", 0), ("leave_in_block", 1),
    ]  # fmt: skip
    assert [head for op, head, _ in found if op.endswith("in_block")][1:] == [r for r in replays for _ in range(2)]
    assert policy(gm) == ["replay again 1"] * 2


@pytest.mark.core(1)
@pytest.mark.parametrize("limit", [1, 2, 8])
@pytest.mark.parametrize("size", [2, 5])
def test_replayed_is_the_same_function(size: int, limit: int) -> None:
    """With gradients, of a graph with tails of all kinds."""

    class Tails(Chain):
        def __init__(self) -> None:
            super().__init__(5)
            self.gamma = nn.ParameterList(nn.Parameter(torch.linspace(-1, 2, C)) for _ in range(5))

        def branch(self, layer: nn.Module, u: Tensor) -> Any:
            i = list(self.layers).index(layer)
            return layer(u) * self.gamma[i] if i % 2 else 0.5 * layer(u)

    replayed(Tails(), limit=limit, recompute=size).same()


def test_two_towers_replay_the_trunk_they_share() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.left, self.right = Chain(3), Chain(2), Chain(2)

        def forward(self, x: Tensor) -> Tensor:
            for i in range(3):
                x = self.trunk.layer(i, x)
            left = self.left.layer(1, self.left.layer(0, x))
            return left * self.right.layer(1, self.right.layer(0, x)).tanh()

    found = replayed(Fork(), recompute=4)
    found.same()
    assert "seam_in_block" in ours(found.after)


def test_in_a_checkpoint_seams_stay_as_they_are() -> None:
    found = replayed(Middle(5), recompute=5)
    checkpoints.run_eagerly(found.before)
    assert not any("block" in op for op in ours(found.after))
