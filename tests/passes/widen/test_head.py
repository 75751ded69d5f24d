"""A learned readout in the graph: before and after, alone and as the last seam."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from mhc_compile.ops.signatures import Coefficients, Read, Seam, named
from tests.nets.structures import C, Layer, graph, ops, rewritten, tokens
from tests.passes.fuse_seams.fusing import fused, words

LEARNED: dict[str, Any] = {"streams": 2, "readout": "learned"}
HEAD = "pad pad pad pad coefficients read".split()


def two_sites(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(x)
    return x + self.up(self.down(x))


def looked_at(self: Any, x: Tensor) -> Tensor:
    """Somebody reads the first sum, too, and a norm stands behind the last."""
    x = x + self.proj(x)
    y = x.sin()
    return self.norm(x + self.up(self.down(x))) + y


def nodes(gm: fx.GraphModule, op: Any) -> list[fx.Node]:
    return list(gm.graph.find_nodes(op="call_function", target=op.default))


def test_the_last_sum_is_read_by_the_head() -> None:
    gm, _ = rewritten(graph(Layer(two_sites), tokens()), **LEARNED)
    assert [op for op in ops(gm) if op != "getitem"] == [
        *"expand coefficients read linear write coefficients read linear linear write".split(), *HEAD
    ]  # fmt: skip
    *_, write = nodes(gm, torch.ops.mhc.write)
    *_, last = nodes(gm, torch.ops.mhc.coefficients)
    *_, read = nodes(gm, torch.ops.mhc.read)
    given: Any = named(Coefficients, last.args)
    reads: Any = named(Read, read.args)
    assert (given.x, reads.x, given.maps.projection) == (write, write, "identity")
    assert [pad.args[0].name for pad in given.parameters] == [f"site_1_{i}" for i in range(4, 8)]
    assert [tuple(pad.meta["example_value"].shape) for pad in given.parameters] == [(2 * C, 4), (3,), (4,), (4,)]
    assert list(last.users) == [reads.h_pre]
    assert {node.meta["mhc_site"] for node in (*given.parameters, last, read)} == {"up"}


def test_other_readers_see_the_mean() -> None:
    gm, _ = rewritten(graph(Layer(looked_at), tokens()), **LEARNED)
    (readout,) = nodes(gm, torch.ops.mhc.readout)
    assert [user.target for user in readout.users] == ["sin"]
    assert [op for op in ops(gm) if op != "getitem"][-8:] == [*HEAD, "layer_norm", "add"]


def test_inlined_it_is_plain_torch() -> None:
    gm, _ = rewritten(graph(Layer(two_sites), tokens()), inline=True, **LEARNED)
    assert not any(str(node.target).startswith("mhc.") for node in gm.graph.nodes)
    assert ops(gm).count("pad") == 4


def test_the_last_write_and_the_head_are_one_seam() -> None:
    """With the norm behind it; the parameters are padded in front."""
    made = fused(looked_at, **LEARNED)
    tail = words(made.after)
    assert tail[tail.index("pad") :] == ["pad", "pad", "pad", "pad", "seam:layer", "add"]
    *_, seam = nodes(made.after, torch.ops.mhc.seam)
    assert named(Seam, seam.args).options.maps.projection == "identity"
    made.same()


def test_kept_in_front_of_blocks_as_the_mean_is() -> None:
    gm, _ = rewritten(graph(Layer(two_sites), tokens()), recompute=2, **LEARNED)
    kept = [node for node in nodes(gm, torch.ops.mhc.read) if node.meta["recompute"].name == "MUST_SAVE"]
    assert kept == nodes(gm, torch.ops.mhc.read)[-1:]
