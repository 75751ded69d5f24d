"""The residual stream is a DTensor: two processes equal one, with mHC parameters away from their start."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import mhc_compile as mhc
from mhc_compile.errors import CaptureError
from tests.end_to_end.distributed.llama import Layer, Llama, PostLayer, lay, pulled
from tests.end_to_end.distributed.ranks import RANKS, on_ranks
from tests.nets.small import gradient_error, perturb

dist: Any = torch.distributed
pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
    pytest.mark.xdist_group("processes"),
]
Tensors = dict[str, Tensor]
TOKENS = torch.arange(16).view(2, 8)
printed = pytest.mark.skipif(torch.__version__ < "2.13", reason="torch writes no placements into a graph's code")


def upgraded(layer: Any = Layer, **options: Any) -> Llama:
    torch.manual_seed(0)
    model = Llama(layer)
    mhc.upgrade(model, (torch.zeros(2, 8, dtype=torch.long),), config=mhc.Config(**options), verify=False)
    perturb(model)
    return model


def placement(text: str) -> Any:
    from torch.distributed.tensor import Replicate, Shard

    return {"replicated": Replicate(), "batch": Shard(0), "tokens": Shard(1), "features": Shard(2)}[text]


def laid(stream: str, layer: Any = Layer, **options: Any) -> Llama:
    """An upgraded model on all processes."""
    from torch.distributed.device_mesh import init_device_mesh

    model = upgraded(layer, **options)
    lay(model, init_device_mesh("cpu", (RANKS,)), placement(stream))
    return model


def apart(rank: int, stream: str, layer: Any, how: dict[str, Any], **options: Any) -> Tensors:
    model = laid(stream, layer, **options)
    counters["stats"].clear()
    found = pulled(model, **how)
    assert counters["stats"]["unique_graphs"] == 1  # which all layers share, too
    return found


@functools.cache
def together(layer: Any = Layer, length: int = 8, **options: Any) -> Tensors:
    """What one process finds for the whole."""
    return pulled(upgraded(layer, **options), length)


def agree(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert gradient_error([found[name] for name in expected], list(expected.values())) < 3e-5


CASES: dict[str, tuple[str, Any, dict[str, Any], dict[str, Any]]] = {
    "tokens": ("tokens", Layer, {}, {}),
    "tokens, an odd number": ("tokens", Layer, {"length": 7}, {}),
    "tokens, block by block": ("tokens", Layer, {"blocks": True}, {}),
    "tokens, compiled": ("tokens", Layer, {"compiler": "inductor"}, {}),
    "tokens, behind norms": ("tokens", PostLayer, {}, {}),
    "tokens, a learned readout": ("tokens", Layer, {}, {"readout": "learned"}),
    "replicated": ("replicated", Layer, {}, {}),
    "features": ("features", Layer, {}, {}),
    "features, block by block": ("features", Layer, {"blocks": True}, {}),
    "features, hc": ("features", Layer, {}, {"connection": "hc", "streams": 3}),
    "features, a learned readout": ("features", Layer, {}, {"readout": "learned", "projection": "identity"}),
}


@pytest.mark.core(1)
@pytest.mark.parametrize(("stream", "layer", "how", "options"), CASES.values(), ids=CASES.keys())
def test_two_processes_equal_one(
    stream: str, layer: Any, how: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    expected = together(layer, how.get("length", 8), **options)
    for found in on_ranks(functools.partial(apart, stream=stream, layer=layer, how=how, **options), tmp_path):
        agree(found, expected)


def summed_by_hand(rank: int) -> Tensors:
    from torch.distributed.device_mesh import init_device_mesh

    torch._dynamo.reset()
    mesh, model = init_device_mesh("cpu", (RANKS,)), upgraded()
    lay(model, mesh, placement("tokens"))
    mhc.sum_gradients(model, mesh)
    return pulled(model)


@pytest.mark.slow
def test_gradients_are_not_summed_twice(tmp_path: Path) -> None:
    expected = together()
    for found in on_ranks(summed_by_hand, tmp_path):
        agree(found, expected)


def gains(rank: int, stream: str) -> list[dict[str, Any]]:
    return [dataclasses.asdict(site) for site in mhc.gains(laid(stream), (TOKENS,)).sites]


@pytest.mark.slow
@pytest.mark.parametrize(("stream", "share"), [("features", 1), ("tokens", RANKS)])
def test_gains_are_those_of_the_tokens_that_a_process_has(stream: str, share: int, tmp_path: Path) -> None:
    each = on_ranks(functools.partial(gains, stream=stream), tmp_path)
    for *found, site in zip(*each, mhc.gains(upgraded(), (TOKENS,)).sites, strict=True):
        known = {(one["name"], one["k"], one["tokens"]) for one in found}
        assert known == {(site.name, site.k, site.tokens // share)}
        matrices = torch.tensor([one["composite"]["matrix"] for one in found])
        torch.testing.assert_close(matrices.mean(0), torch.tensor(site.composite.matrix), atol=1e-6, rtol=0)
        if stream == "features":
            expected = pytest.approx((site.spread, site.spread_max, *site.shares), rel=1e-4)
            assert all((one["spread"], one["spread_max"], *one["shares"]) == expected for one in found)


def exported(rank: int) -> str:
    model = laid("tokens")
    with pytest.raises(CaptureError) as caught:
        mhc.export(model, (TOKENS,))
    return str(caught.value)


@printed
@pytest.mark.slow
def test_an_exported_graph_is_of_one_process(tmp_path: Path) -> None:
    for said in on_ranks(exported, tmp_path):
        assert "takes a DeviceMesh" in said
        assert "before parallelize_module" in said


def parallelised_first(rank: int) -> list[str]:
    from torch.distributed.device_mesh import init_device_mesh

    model = Llama()
    lay(model, init_device_mesh("cpu", (RANKS,)), placement("tokens"))
    return [site.name for site in mhc.upgrade(model, (torch.zeros(2, 8, dtype=torch.long),)).sites]


@printed
def test_a_model_is_upgraded_as_it_lies_on_processes(tmp_path: Path) -> None:
    names = [f"layers.{i}.{branch}" for i in range(2) for branch in ("attention", "feed_forward")]
    assert on_ranks(parallelised_first, tmp_path) == [names] * RANKS


def sharded(rank: int, blocks: bool) -> Tensors:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch._dynamo.reset()
    mesh, model = init_device_mesh("cpu", (1, RANKS), mesh_dim_names=("data", "tensor")), upgraded()
    lay(model, mesh["tensor"], placement("tokens"))
    mhc.shard_sites(model, mesh=mesh["data"])
    for layer in (*model.layers, model):
        fully_shard(layer, mesh=mesh["data"])
    return pulled(model, blocks=blocks)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"])
def test_within_shards_of_fsdp2(blocks: bool, tmp_path: Path) -> None:
    expected = together()
    for found in on_ranks(functools.partial(sharded, blocks=blocks), tmp_path):
        agree(found, expected)


def on_a_square(rank: int) -> list[Tensors]:
    """Half of the tokens and half of the features each."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_module, distribute_tensor

    torch._dynamo.reset()
    mesh, found = init_device_mesh("cpu", (2, 2)), []
    for lying in ([Shard(1), Shard(2)], [Shard(2), Shard(1)]):
        model, *given = square()
        for linear in (model.one, model.two):
            distribute_module(linear, mesh)
        x, upstream = (distribute_tensor(t, mesh, lying) for t in given)
        x.requires_grad_()
        out: Any = torch.compile(model, backend="mhc", options={"compiler": "aot_eager"})(x)
        assert isinstance(out, DTensor)
        out.backward(upstream)
        grads: dict[str, Any] = {name: p.grad for name, p in mhc.named_parameters(model)}
        of_x: Any = x.grad
        whole: Any = out.detach()
        found.append({"": whole.full_tensor(), "x": of_x.full_tensor(), **grads})
    return found


class Connections(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(10, 10), torch.nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.one(whole(x))
        return x - self.two(whole(x)).relu()


def whole(x: Any) -> Any:
    """All of a DTensor, as torch's own products want it."""
    from torch.distributed.tensor import DTensor, Replicate

    return x.redistribute(placements=[Replicate()] * 2) if isinstance(x, DTensor) else x


def square() -> tuple[Connections, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Connections()
    x, upstream = (torch.randn(2, 6, 10) for _ in range(2))
    report = mhc.upgrade(model, (x,), config=mhc.Config(streams=3), verify=False)
    assert len(report.sites) == 2
    perturb(model)
    return model, x, upstream


def rewritten(rank: int, alone: bool = False) -> Any:
    """What a traced graph that was rewritten computes, with parameters that mix."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    torch._dynamo.reset()
    torch.manual_seed(0)
    gm, x = torch.fx.symbolic_trace(Connections()), torch.randn(2, 6, 10)
    if not alone:
        mesh = init_device_mesh("cpu", (RANKS,))
        distribute_module(gm, mesh)
        x = distribute_tensor(x, mesh, [Shard(1)])
    made = mhc.rewrite(gm, (x,), config=mhc.Config(streams=3))
    torch.manual_seed(1)
    of_sites = [parameter for name, parameter in made.named_parameters() if name.startswith("mhc.")]
    for parameter in of_sites:
        torch.nn.init.normal_(parameter, std=0.3)
    out: Any = made(x).detach()
    return len(of_sites), out if alone else out.full_tensor()


@printed
def test_any_graph_is_rewritten(tmp_path: Path) -> None:
    """And what it computes is checked on all processes together."""
    count, expected = rewritten(0, alone=True)
    for found, out in on_ranks(rewritten, tmp_path):
        assert found == count == 6
        torch.testing.assert_close(out, expected)


@pytest.mark.slow
def test_four_processes_with_half_of_both(tmp_path: Path) -> None:
    model, x, upstream = square()
    out = torch.compile(model, backend="mhc", options={"compiler": "aot_eager"})(x.requires_grad_())
    out.backward(upstream)
    assert x.grad is not None
    grads: dict[str, Any] = {name: p.grad for name, p in mhc.named_parameters(model)}
    for each in on_ranks(on_a_square, tmp_path, ranks=4):
        for found in each:
            agree(found, {"": out.detach(), "x": x.grad, **grads})
