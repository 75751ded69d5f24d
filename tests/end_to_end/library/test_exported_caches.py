"""Exported graphs keep caches of transformers: one that grows as an argument, one of a fixed length as buffers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.integrations import executorch

import mhc_compile as mhc
from mhc_compile.errors import CaptureError
from tests.nets.library import GROUPED, VOCABULARY
from tests.nets.small import compiled, perturb, relative

BATCH, LENGTH = 3, 9


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)).eval()
    mhc.upgrade(model, (text(),), {"use_cache": False})
    perturb(model, 2.0)
    return model


def text() -> Tensor:
    return torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))


def last(model: nn.Module, ids: Tensor) -> Tensor:
    logits: Tensor = compiled(model)(ids, use_cache=False).logits[:, -1]
    return logits


@pytest.mark.slow
@torch.no_grad()
def test_a_cache_that_grows(model: Any) -> None:
    """Made with two tokens behind four, a graph serves any number behind any; slices are given, with their strides."""
    executorch.register_dynamic_cache_export_support()
    ids, cache = text(), hf.DynamicCache(config=model.config)
    compiled(model)(ids[:, :4], past_key_values=cache)
    size, layers = torch.export.Dim.DYNAMIC, model.config.num_hidden_layers
    keys = [{0: size, 2: size}] * layers  # and values
    shapes = {"input_ids": {0: size, 1: size}, "past_key_values": [keys, keys], "use_cache": None}
    given = {"input_ids": ids[:, 4:6], "past_key_values": cache, "use_cache": True}
    graph = mhc.export(model, (), copy.deepcopy(given), dynamic_shapes=shapes)
    program = torch.export.export(graph, (), copy.deepcopy(given), dynamic_shapes=shapes).module()
    for run in (graph, program):
        held = copy.deepcopy(cache)
        for start, end in ((4, 6), (6, 8), (8, 9)):
            found = run(input_ids=ids[:, start:end], past_key_values=held, use_cache=True)
            held = found.past_key_values
            assert held.get_seq_length() == end
            assert relative(found.logits[:, -1], last(model, ids[:, :end])) < 1e-5


@torch.no_grad()
def test_a_cache_of_a_fixed_length(model: Any) -> None:
    ids, most = text()[:1], 16
    model.generation_config.use_cache, model.generation_config.cache_implementation = True, "static"
    model.generation_config.cache_config = {"batch_size": 1, "max_cache_len": most}
    module = executorch.TorchExportableModuleWithStaticCache(model, 1, most, torch.device("cpu"))
    given = {"input_ids": ids[:, :1], "cache_position": torch.tensor([0])}
    program = torch.export.export(mhc.export(module, (), given), (), given).module()
    for at in range(LENGTH):
        logits = program(input_ids=ids[:, at : at + 1], cache_position=torch.tensor([at]))
        assert relative(logits[:, -1], last(model, ids[:, : at + 1])) < 1e-5


class Unknown(hf.DynamicCache):  # type: ignore[misc]  # transformers is Any to mypy
    """A cache that nobody registered."""


@pytest.mark.slow
@torch.no_grad()
def test_a_cache_that_torch_does_not_know(model: Any) -> None:
    with pytest.raises(CaptureError, match="register_dynamic_cache_export_support"):
        mhc.export(model, (), {"input_ids": text(), "past_key_values": Unknown(config=model.config)})
    cache = Unknown(config=model.config)
    compiled(model)(text()[:, :4], past_key_values=cache)
    with pytest.raises(CaptureError, match="register_dynamic_cache_export_support"):
        mhc.export(model, (), {"input_ids": text()[:, 4:], "past_key_values": cache})
