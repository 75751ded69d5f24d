"""What lies between two branches becomes one op: graphs before and after, and the boundaries that keep ops apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint

from mhc_compile.ops.signatures import (
    OPS,
    Enter,
    Leave,
    MapOptions,
    Options,
    Parameters,
    Seam,
    SiteInputs,
    Tail,
    Written,
)
from mhc_compile.passes.graph import checkpoints, ir, optable
from mhc_compile.passes.widen import Widened
from tests.nets.structures import C, Layer, example_inputs, graph, rewritten, tokens
from tests.passes.fuse_seams.fusing import CPU, Pair, fused, given, ours, pair, words

FUSED = ("enter", "seam", "leave")


def two_sites(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(self.norm(x))
    return x + self.gamma * self.up(self.down(x))


def nodes(gm: fx.GraphModule, *ops: str) -> list[fx.Node]:
    return [node for node in gm.graph.nodes if optable.name(node) in ops]


def check(made: Pair, *expected: str) -> None:
    """The graph is as expected, and the same function."""
    assert words(made.after) == " ".join(expected).split()
    made.after.graph.lint()
    made.same()


def test_all_between_two_branches_is_one_op() -> None:
    made = fused(two_sites)
    assert words(made.before) == (
        "expand coefficients read layer_norm linear write coefficients read linear linear mul write readout".split()
    )
    check(made, "enter:layer:equal linear seam:equal linear linear leave:scale")


def test_operands_of_the_ops() -> None:
    made = fused(two_sites, projection="identity", sinkhorn_iters=3, eps=1e-5)
    (enter,), (seam,), (leave,) = (nodes(made.after, op) for op in FUSED)
    inputs: dict[str, Any] = {node.name: node for node in made.after.graph.find_nodes(op="placeholder")}
    first, second = (Parameters(*(inputs[f"site_{i}_{j}"] for j in range(4))) for i in range(2))
    weight, bias = (inputs[f"l_self_modules_norm_parameters_{name}_"] for name in ("weight", "bias"))
    maps, gamma = MapOptions(2, "mhc", "identity", 3, 1e-5, kernels=True), inputs["l_self_parameters_gamma_"]
    up: Any
    down: Any
    up, _, down = nodes(made.after, "linear")
    entered, new = _results(enter), _results(seam)
    (expand,) = nodes(made.before, "expand")
    x = given(enter).x
    assert str(x) == str(given(expand).x)
    assert given(enter) == Enter(x, SiteInputs(first, weight, bias), Options(maps, "layer", 1e-5, equal_streams=True))
    assert given(seam) == Seam(
        x,
        Written(up, entered["h_post"], entered["h_res"], Tail(None, None, 1.0)),
        SiteInputs(second, None, None),
        Options(maps, "none", 0.0, equal_streams=True),
    )
    written = Written(down, new["h_post"], new["h_res"], Tail(None, gamma, 1.0))
    assert given(leave) == Leave(new["x"], written, 2, equal_streams=False)


def _results(node: fx.Node) -> dict[str, Any]:
    return dict(ir.results(node, OPS[optable.name(node)].results))


def test_nothing_changes_without_kernels() -> None:
    for devices in (frozenset[str](), frozenset({"cuda"})):
        made = fused(two_sites, devices=devices)
        assert words(made.after) == words(made.before)
        assert not any(site.generated or site.unfit for site in made.results[Widened].sites)


@pytest.mark.parametrize(
    ("options", "dtype", "reason"),
    [
        ({"connection": "hc"}, torch.float32, "the connections 'mhc' and 'deepseek-v4'"),
        ({"streams": 17}, torch.float32, "up to 16 streams"),
        ({}, torch.float64, "torch.float64"),
    ],
    ids=["connection", "streams", "dtype"],
)
def test_why_a_site_has_no_kernel(options: dict[str, Any], dtype: torch.dtype, reason: str) -> None:
    made = fused(two_sites, dtype=dtype, **options)
    assert words(made.after) == words(made.before)
    sites = made.results[Widened].sites
    assert [site.name for site in sites] == ["proj", "up"]
    assert all(reason in site.unfit and not site.generated for site in sites)


def test_inline_graphs_hold_no_ops_of_ours() -> None:
    gm, _ = rewritten(graph(Layer(two_sites), tokens()), devices=CPU, inline=True)
    assert not any("mhc" in str(node.target) for node in gm.graph.nodes)


def test_other_readers_of_a_sum_read_the_streams_of_the_seam() -> None:
    def step(self: Any, x: Tensor) -> Any:
        y = x + self.proj(self.norm(x))
        z = y + self.attn(self.norm2(y))
        return z.sin(), y.cos(), z + self.up(self.down(z))

    check(
        fused(step),
        "enter:layer:equal linear seam:layer:equal readout linear linear transpose matmul softmax linear matmul",
        "seam readout sin cos linear linear leave",
    )


def test_a_sum_with_more_readers_than_a_readout_keeps_its_write() -> None:
    def step(self: Any, x: Tensor) -> Any:
        y = x + self.proj(x)
        z = 0.5 * y + self.up(self.down(y))
        return z, y

    made = fused(step)
    assert "write" in words(made.after)
    made.same()


def test_two_towers_on_one_trunk() -> None:
    def step(self: Any, x: Tensor) -> Any:
        x = x + self.proj(self.norm(x))
        return x + self.up(self.down(self.norm2(x))), x + self.mlp(self.norm3(x))

    made = fused(step)
    made.same()
    assert ours(made.after) == ("enter:layer:equal seam:layer:equal enter:layer leave leave".split())


def test_two_towers_from_where_streams_start() -> None:
    """Both read the tensor itself: no copy of it is left."""

    def step(self: Any, x: Tensor) -> Any:
        x = x.exp()
        a, b = x + self.proj(self.norm(x)), x + self.mlp(self.norm2(x))
        return a + self.up(self.down(a)), b + self.cross(b)

    made = fused(step)
    made.same()
    assert [word for word in words(made.after) if "equal" in word] == (
        "enter:layer:equal enter:layer:equal seam:equal seam:equal".split()
    )
    assert "expand" not in words(made.after)


def test_an_op_on_the_streams_keeps_write_and_read_apart() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = self.norm(x + self.proj(x))
        return self.norm2(x + self.up(self.down(x)))

    check(fused(step), "expand enter:equal linear write layer_norm enter linear linear leave layer_norm")


def test_a_read_of_other_streams_than_the_coefficients() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = 0.5 * x + self.proj(x)
        return x + self.up(self.down(x))

    check(fused(step), "expand mul coefficients read linear seam linear linear leave")


def test_streams_from_another_graph() -> None:
    plain = graph(Layer(two_sites), tokens())
    gm, _ = rewritten(plain, entry=False, carries=True, devices=CPU, streams=2)
    assert words(gm) == "enter:layer linear seam linear linear mul write readout".split()


class Blocks(nn.Module):
    """Layers, each in a checkpoint of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(two_sites) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


def test_a_checkpoint_boundary_inside_a_seam() -> None:
    made = pair(Blocks(), tokens())
    check(
        made,
        "enter:layer:equal linear seam:equal linear linear mul write",
        "enter:layer linear seam linear linear leave:scale",
    )
    again = CheckpointPolicy.PREFER_RECOMPUTE
    regions = [checkpoints.tags(node) for node in nodes(made.after, *FUSED)]
    assert regions == [{"recompute": again, "ac_graph_id": i} for i in (0, 0, 1, 1, 1)]


def test_what_a_checkpoint_holds_of_a_branch_stays_in_it() -> None:
    """It recomputes the norm and the tail; taken in, they would be saved."""

    def branch(self: Any, x: Tensor) -> Tensor:
        return self.gamma * self.proj(self.norm(x))

    def step(self: Any, x: Tensor) -> Tensor:
        x = x + checkpoint(branch, self, x, use_reentrant=False)
        return x + self.up(self.down(x))

    check(fused(step), "enter:equal layer_norm linear mul seam:equal linear linear leave")


def test_a_change_of_the_gradient_mode() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = x + self.proj(x)
        with torch.no_grad():
            h = self.norm(x)
        return x + self.up(self.down(h))

    made = fused(step)
    made.same()
    assert [word for word in words(made.after) if word != "_set_grad_enabled"] == (
        "enter:equal linear seam:equal layer_norm linear linear leave".split()
    )


def test_an_operand_that_is_made_behind_the_write() -> None:
    """From parameters alone it is made earlier; from the streams it cannot be."""

    def step(self: Any, x: Tensor) -> Tensor:
        x = x + self.proj(x)
        x = x + self.attn.q(nn.functional.rms_norm(x, (C,), 1 + self.gamma, 1e-6))
        return x + self.attn.v(nn.functional.rms_norm(x, (C,), self.gamma + x.mean(), 1e-6))

    check(fused(step), "enter:equal linear add seam:rms:equal linear seam mean add rms_norm linear leave")


def test_what_is_overwritten_is_read_where_it_was() -> None:
    """A vector that changes: as a tail it would be read later, as a norm's weight earlier."""

    def step(self: Any, x: Tensor) -> Tensor:
        vector = 1.0 * self.gamma
        x = x + (self.proj(x) + vector)
        vector.view(C).add_(1)
        x = x + self.attn.q(nn.functional.rms_norm(x, (C,), vector, 1e-6))
        return x + self.attn.v(x)

    check(fused(step), "enter:equal mul linear add seam:equal view add rms_norm linear seam linear leave")


def test_every_node_has_the_value_and_origin_that_its_op_has() -> None:
    """AOTAutograd bypasses its cache for a graph whose tensors have no example values."""
    made = pair(Blocks(), tokens())
    Values(made.after).run(*example_inputs(made.after))
    for node in nodes(made.after, *FUSED):
        assert "two_sites" in node.meta["stack_trace"]
        assert "layers" in str(node.meta["nn_module_stack"])
        assert all(user.meta["mhc_site"] == node.meta["mhc_site"] for user in node.users if user.target != "output")
    assert [node.meta["mhc_site"] for node in nodes(made.after, "enter", "seam")] == [
        f"layers.{i}.{label}" for i in range(2) for label in ("proj", "up")
    ]


def test_values_behind_coefficients_that_stay() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = 0.5 * x + self.proj(x)
        return x + self.up(self.down(x)) * self.gamma.view(1, 1, C)

    made = fused(step)
    assert ours(made.after) == "expand coefficients read seam leave:scale".split()
    Values(made.after).run(*example_inputs(made.after))


class Values(fx.Interpreter):
    """Compares results with the example values of their nodes; widen gives its coefficients none."""

    def run_node(self, n: fx.Node) -> Any:
        result, held = super().run_node(n), n.meta.get("example_value", ())
        if n.op not in ("placeholder", "output") and "coefficients" not in f"{n.target}{n.args[0]}":
            pairs = zip(result, held, strict=True) if isinstance(result, list) else [(result, held)]
            assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs), n
        return result
