"""Graphs before and after, in a few lines each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from mhc_compile.ops.signatures import (
    Coefficients,
    CoefficientsResult,
    MapOptions,
    Parameters,
    Read,
    Write,
    named,
)
from mhc_compile.passes.graph import ir
from mhc_compile.passes.widen import Widened
from tests.nets.structures import C, Layer, Step, example_inputs, graph, ops, rewritten, tokens


def widened(step: Step, *args: Tensor, inline: bool = False, **options: Any) -> fx.GraphModule:
    return rewritten(graph(Layer(step), *(args or (tokens(),))), inline=inline, **{"streams": 2, **options})[0]


def listing(gm: fx.GraphModule) -> list[str]:
    """The ops; parts of a tuple are left out."""
    return [op for op in ops(gm) if op != "getitem"]


def reads(gm: fx.GraphModule, op: str) -> list[str]:
    """Whose outputs the nodes of an op read."""
    nodes = [node for node, name in zip(_calls(gm), ops(gm), strict=True) if name == op]
    names = dict(zip(_calls(gm), ops(gm), strict=True))
    return [names.get(node.all_input_nodes[0], "input") for node in nodes]


def _calls(gm: fx.GraphModule) -> list[fx.Node]:
    return [node for node in gm.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]


def two_sites(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(x)
    return x + self.up(self.down(x))


def test_sums_become_sites() -> None:
    assert ops(graph(Layer(two_sites), tokens())) == "linear add linear linear add".split()
    assert listing(widened(two_sites)) == (
        "expand coefficients read linear write coefficients read linear linear write readout".split()
    )


def test_the_sites_place_is_in_the_metadata() -> None:
    gm = widened(two_sites)
    made = [node.meta.get("mhc_site") for node in _calls(gm) if "mhc" in str(node.target)]
    assert made == ["proj"] * 4 + ["up"] * 4
    assert all("two_sites" in node.meta["stack_trace"] for node in _calls(gm) if "mhc" in str(node.target))


def test_operands_of_the_ops() -> None:
    gm = widened(two_sites)
    expand, coefficients, pre, post, res, read, linear, write = _calls(gm)[:8]
    inputs = {node.name: node for node in gm.graph.find_nodes(op="placeholder")}
    parameters = Parameters(*(inputs[f"site_0_{i}"] for i in range(4)))
    maps = MapOptions(2, "mhc", "sinkhorn", 20, 1e-6, kernels=True)
    assert named(Coefficients, coefficients.args) == Coefficients(expand, parameters, maps)  # type: ignore[arg-type]  # a node
    picked = ir.results(coefficients, CoefficientsResult)
    assert picked == [("h_pre", pre), ("h_post", post), ("h_res", res)]
    assert read.args == ir.args(Read(expand, pre, 2))  # type: ignore[arg-type]  # nodes
    assert linear.args[0] is read
    written = Write(expand, linear, post, res, 2)  # type: ignore[arg-type]  # nodes
    assert named(Write, write.args)._replace(block=0) == written


def test_other_readers_of_a_sum_get_one_readout() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        y = x + self.proj(x)
        z = y + self.up(self.down(y))
        return torch.cat([y.sin(), y.cos(), z], -1)

    gm = widened(step)
    assert listing(gm) == (
        "expand coefficients read linear write coefficients read readout linear linear"
        " write readout sin cos cat".split()
    )
    assert reads(gm, "sin") == reads(gm, "cos") == ["readout"]


def test_ops_between_sums_act_on_the_streams() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = self.norm(x + self.proj(x))
        return self.norm2(x + self.up(self.down(x)))

    gm = widened(step)
    assert listing(gm) == (
        "expand coefficients read linear write layer_norm"
        " coefficients read linear linear write readout layer_norm".split()
    )
    assert reads(gm, "layer_norm") == ["write", "readout"]
    assert reads(gm, "read") == ["expand", "layer_norm"]


def test_an_op_that_branch_and_trunk_share_is_there_for_both() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = (x + self.proj(x)).relu()
        return x + self.up(self.down(x)) + x.mean() * self.proj(x)

    gm = widened(step)
    assert reads(gm, "relu") == ["write"]
    assert reads(gm, "linear") == ["read", "read", "linear", "read"]
    assert "add" in listing(gm)  # of the two branches


def test_a_gate_on_the_trunk_reads_the_readout() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = x + self.proj(x)
        x = x * self.down(x).sum(-1, keepdim=True)
        return x + self.up(self.down(x))

    gm = widened(step)
    assert reads(gm, "linear") == ["read", "readout", "read", "linear"]
    assert reads(gm, "mul") == ["write"]


def test_operands_by_token_are_broadcast_over_the_streams() -> None:
    def step(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        x = (x + self.proj(x)) * mask * self.gamma
        return x + self.up(self.down(x))

    gm = widened(step, tokens(), tokens()[..., :1])
    assert "unsqueeze" in listing(gm)
    (mask, gamma) = [node for node, op in zip(_calls(gm), ops(gm), strict=True) if op == "mul"]
    assert "unsqueeze" in str(mask.args[1])
    assert "gamma" in str(gamma.args[1])


def test_features_elsewhere_are_moved_last_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(C, C, 3, padding=1), nn.Conv1d(C, C, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = (x + self.first(x)).relu()
            return x + self.second(x)

    gm, _ = rewritten(graph(Net(), tokens().mT), streams=2)
    assert listing(gm) == (
        "movedim expand coefficients read movedim conv1d movedim write relu"
        " coefficients read movedim conv1d movedim write readout movedim".split()
    )
    assert [node.args[1:] for node in _calls(gm) if node.target == "movedim"] == [
        (-2, -1), (-1, -2), (-2, -1), (-1, -2), (-2, -1), (-1, -2)
    ]  # fmt: skip


def test_a_carrier_made_behind_its_branch() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = x + self.proj(x)
        f = self.up(self.down(x))
        return 0.5 * x + f

    gm = widened(step)
    assert listing(gm) == (
        "expand coefficients read linear write mul coefficients read linear linear write readout".split()
    )
    gm.graph.lint()


def test_nothing_to_widen() -> None:
    gm = graph(Layer(lambda self, x: self.proj(x)), tokens())
    made, results = rewritten(gm)
    assert results[Widened] == Widened()
    assert ops(made) == ops(gm) == ["linear"]


@pytest.mark.parametrize("connection", ["mhc", "hc"])
def test_lowered_inline_it_is_plain_torch_and_equal(connection: str) -> None:
    gm = widened(two_sites, connection=connection)
    plain = widened(two_sites, connection=connection, inline=True)
    assert any("mhc" in str(node.target) for node in gm.graph.nodes)
    assert not any("mhc" in str(node.target) for node in plain.graph.nodes)
    plain.graph.lint()
    inputs = [t.double() for t in example_inputs(gm)]
    for ours, theirs in zip(plain(*inputs), gm(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # readouts in fp32


def test_lowered_inline_under_autocast_coefficients_stay_fp32() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = x + self.proj(x).float()
            return x + self.up(self.down(x)).float()

    gm, plain = widened(step), widened(step, inline=True)
    inputs = example_inputs(gm)
    for ours, theirs in zip(plain(*inputs), gm(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_without_inline_the_ops_stay() -> None:
    assert "coefficients" in ops(widened(two_sites))


def test_streams_leave_and_enter_graphs() -> None:
    class Net(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return two_sites(self, x)

    gm, results = rewritten(graph(Net(two_sites), tokens()), entry=False, carries=True, streams=2)
    (taken,), (given,) = results[Widened].takes, results[Widened].gives
    inputs = gm.graph.find_nodes(op="placeholder")
    assert inputs[taken.tensor].name == "l_x_"
    assert inputs[-1].name == "l_x__streams"
    assert taken.phi is not None
    assert (taken.site, inputs[taken.phi].name) == ("proj", "site_0_0")
    assert (given.tensor, given.site) == (0, "up")
    plain, streams = gm.graph.find_nodes(op="output")[0].args[0]
    assert [str(node.target).split(".")[1] for node in (plain, streams)] == ["readout", "write"]
    assert "expand" not in ops(gm)
