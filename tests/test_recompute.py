"""Selective recompute of whole models: the same gradients, what is kept, and what else recomputes or moves memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import mhc_compile as mhc
from tests import nets
from tests.nets import (
    Net,
    PostBlock,
    compiled,
    inputs,
    results,
    same,
    upgraded,
)
from tests.partition import WORK, parts
from tests.test_checkpoint import Checkpointed, Halves

SIZES = (1, 3, 8)


def steps(model: nn.Module, x: Tensor, how: Any, compiler: str = "aot_eager", **options: Any) -> nets.Results:
    """One step with the same random numbers every time."""
    torch._dynamo.reset()
    torch.manual_seed(3)
    return results(compiled(model, compiler=compiler, recompute=how, **options), model, x)


def llama(layers: int = 2, **options: Any) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=17, attn_implementation="eager", hidden_size=64, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=16, use_cache=False, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


def vit(layers: int = 2) -> nn.Module:
    config = transformers.ViTConfig(
        attn_implementation="eager", hidden_size=64, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=2, image_size=8,
        patch_size=4,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config)


@pytest.mark.parametrize(
    "make", [Net, lambda n: Net(n, PostBlock), lambda n: Net(n, dropout=0.3), Checkpointed, Halves]
)
def test_gradients_are_the_same_to_the_bit(make: Callable[[int], nn.Module]) -> None:
    model = upgraded(make, 4, moved=True)
    out, grads = steps(model, inputs(), "off")
    for how in SIZES:
        found = steps(model, inputs(), how)
        assert torch.equal(found[0], out)
        assert same(found[1], grads)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_blocks_keep_the_streams_of_their_first_site(size: int) -> None:
    """The first site of all keeps one stream, for it has nothing else."""
    model = upgraded(Net, 4, moved=True)
    assert parts(model, inputs(), recompute=size).streams(4) == -(-8 // size) - 1


CONFIGS = [
    mhc.Config(streams=2),
    mhc.Config(),
    mhc.Config(streams=3, projection="identity"),
    mhc.Config(streams=3, connection="hc"),
]
MODELS = [
    (llama, {"input_ids": torch.arange(14).view(2, 7)}),
    (vit, {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)}),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["two", "four", "identity", "hc"])
@pytest.mark.parametrize(("make", "given"), MODELS, ids=["llama", "vit"])
def test_as_much_is_kept_as_is_planned(make: Callable[[], nn.Module], given: Any, config: mhc.Config) -> None:
    """Beside what the plain model keeps."""
    plain = make()
    before = parts(plain, run=lambda step: step(**given), connection="residual").saved_bytes()
    model = copy.deepcopy(plain)
    mhc.upgrade(model, kwargs=given, config=config, verify=False)
    for how in (1, 2, 4):
        asked = mhc.Config.from_options({"recompute": how}, config)
        memory = mhc.explain(plain, kwargs=given, config=asked).memory
        kept = parts(model, run=lambda step: step(**given), recompute=how).saved_bytes()
        assert kept - before == pytest.approx(memory.kept - memory.plain, abs=0.02 * memory.kept)


@pytest.mark.parametrize(("make", "given"), MODELS, ids=["llama", "vit"])
def test_no_branch_runs_twice(make: Callable[[], nn.Module], given: Any) -> None:
    """Nor are coefficients made again."""
    model = make()
    mhc.upgrade(model, kwargs=given, verify=False)
    found = {how: parts(model, run=lambda step: step(**given), recompute=how).ops() for how in ("off", 2, 6)}
    work = {how: [{op: ops[op] for op in WORK} for ops in both] for how, both in found.items()}
    assert work[2] == work[6] == work["off"]
    assert sum(work["off"][1].values()) > 20
    assert all(found[how][1]["mhc.coefficients.default"] == 0 for how in (2, 6))
