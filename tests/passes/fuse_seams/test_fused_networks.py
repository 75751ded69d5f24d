"""Whole networks with fused ops, under the backend, against the same networks with streams written by hand."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

import mhc_compile as mhc
from mhc_compile.backend import mhc as backend
from tests.nets import networks as nets
from tests.nets import small
from tests.nets.networks import KINDS, NETS
from tests.nets.random_networks import Drawing, Net, drawings, networks
from tests.nets.spellings import LearnedGate, Spelt
from tests.nets.streams import Hand, apart, by_hand, load, near, perturbed, run
from tests.passes.fuse_seams.fusing import kernels_everywhere, ours, pair

LIFTED = (nets.ScaledCarrier, nets.LearnedCarrier, LearnedGate, Spelt)  # read other streams than their coefficients


def whole(counts: Any) -> int:
    """How many sites there are."""
    arrivals = ("enter", "seam", "seam_in_block", "coefficients")
    return sum(n for word, n in counts.items() if word.split(":")[0] in arrivals)


@pytest.mark.core(1)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_as_by_hand(name: str, kind: tuple[str, str]) -> None:
    make, shapes, sites = NETS[name]
    config = mhc.Config(streams=3, connection=kind[0], projection=kind[1])
    plain = make().double()
    args = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    model = copy.deepcopy(plain)
    parameters = perturbed(mhc.upgrade(model, args, config=config, verify=False), config)
    load(model, parameters)
    with kernels_everywhere() as counts:
        compiled = torch.compile(model, backend=backend, options={"compiler": "aot_eager", "recompute": 3})
        found = run(compiled, dict(model.named_parameters()), args)
    assert whole(counts) == sites
    assert counts["coefficients"] < sites / 2 or name in ("scaled-carrier", "learned-carrier")
    hand = by_hand(plain, Hand(config.connection, config.projection, config.streams, parameters))
    expected = run(hand, dict(hand.named_parameters()) | parameters, args)
    near(found, expected, 1e-8)
    assert apart(run(plain, {}, args), expected) > 1e-2


@networks(1)
@given(drawings)
def test_random_network(drawing: Drawing) -> None:
    """Fused, replayed from the heads of blocks, is unfused and all kept, at parameters that mix."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Net(drawing).double()
    args = [torch.randn(drawing.batch, drawing.length, drawing.width, dtype=torch.float64)]
    config = mhc.Config(streams=drawing.streams, connection=drawing.kind[0], projection=drawing.kind[1])
    report = mhc.upgrade(model, args, config=config, verify=False)
    load(model, perturbed(report, config))

    def results() -> dict[str, Tensor]:
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend, options={"compiler": "eager", "recompute": 3})
        return run(compiled, dict(model.named_parameters()), args)

    expected = results()
    with kernels_everywhere() as counts:
        near(results(), expected, 1e-9)
    assert whole(counts) == len(drawing.sites())
    if not any(block in LIFTED for region in drawing.regions for block in region):
        assert counts["coefficients"] == counts["read"] == 0


def tiny(cls: str, dtype: torch.dtype) -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    if cls == "ViT":
        config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, qkv_bias=False)  # no softmax sees k's bias
        return transformers.ViTModel(config, add_pooling_layer=False).to(dtype).eval()
    config = getattr(transformers, f"{cls}Config")(
        **sizes, num_key_value_heads=2, head_dim=8, vocab_size=50, use_cache=False
    )
    return getattr(transformers, f"{cls}Model")(config).to(dtype)


KINDS_OF_NORMS = [("Llama", "rms", "rms_cast"), ("Gemma", "rms", "rms"), ("ViT", "layer", "layer")]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("cls", "wide", "narrow"), KINDS_OF_NORMS, ids=[row[0] for row in KINDS_OF_NORMS])
def test_real_models(cls: str, wide: str, narrow: str, dtype: torch.dtype) -> None:
    """One enter, a seam between any two branches, one leave; every norm is in them, the last one behind."""
    model = tiny(cls, dtype)
    args = (torch.randn(2, 3, 8, 8, dtype=dtype) if cls == "ViT" else torch.randint(50, (2, 5)),)
    norm = wide if dtype == torch.float32 else narrow
    made = pair(model, *args)
    assert ours(made.after) == [f"enter:{norm}:equal", f"seam:{norm}:equal", *[f"seam:{norm}"] * 4, "leave"]

    report = mhc.upgrade(model, args, config=mhc.Config(streams=3), verify=False)
    load(model, {name: p.to(torch.float32) for name, p in perturbed(report, mhc.Config(streams=3)).items()})
    parameters = dict(model.named_parameters())

    def results() -> dict[str, Tensor]:
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend, options={"compiler": "aot_eager"})
        out = compiled(*args).last_hidden_state
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        grads = torch.autograd.grad(out, list(parameters.values()), upstream, allow_unused=True)
        return {"output": out.detach()} | {n: g for n, g in zip(parameters, grads, strict=True) if g is not None}

    expected = results()
    with kernels_everywhere() as counts:
        found = results()
    assert counts[f"seam:{norm}"] == 4
    near(found, expected, 1e-4 if dtype == torch.float32 else 0.1)


@pytest.mark.slow
def test_aot_autograd_caches_a_fused_graph() -> None:
    model, args = small.Net(1), (torch.randn(2, 3, 8),)
    mhc.upgrade(model, args, verify=False)
    with fresh_cache(), kernels_everywhere() as counts:
        for expected in ("autograd_cache_miss", "autograd_cache_hit"):
            torch._dynamo.reset()
            counters.clear()
            torch.compile(model, backend=backend)(*args).sum().backward()
            assert counters["aot_autograd"][expected] == 1
            assert counters["aot_autograd"]["autograd_cache_bypass"] == 0
    assert counts["leave"] == 2


def results(model: nn.Module, inputs: list[Tensor]) -> dict[str, Tensor]:
    made = [run(model, dict(model.named_parameters()), [t]) for t in inputs]
    return {f"{name} of {i}": t for i, found in enumerate(made) for name, t in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("by_block", [True, False], ids=["by-block", "whole"])
def test_sizes_that_change_and_blocks_one_by_one(by_block: bool) -> None:
    """Streams of blocks may come from another graph, so they are no copies of one; those that leave are written."""
    model, inputs = small.Net(2), [torch.randn(2, length, 8) for length in (3, 7, 5)]
    config = mhc.Config()
    load(model, {name: p.float() for name, p in perturbed(mhc.upgrade(model, inputs[:1]), config).items()})

    def compiled() -> dict[str, Tensor]:
        torch._dynamo.reset()
        for module in model.blocks if by_block else [model]:
            module.compile(backend=backend, options={"compiler": "aot_eager"})
        return results(model, inputs)

    expected = compiled()
    with kernels_everywhere() as counts:
        near(compiled(), expected, 1e-5)
    if by_block:  # for one length, and for any: a view, as the stem returns, and no view, as in plain torch
        assert counts == Counter(3 * ["enter:layer", "seam:layer", "write", "readout"])
    else:
        assert counts == Counter(2 * ["enter:layer:equal", "seam:layer:equal", "seam:layer", "seam:layer", "leave"])
