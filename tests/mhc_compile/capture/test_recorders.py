"""Hugging Face's models record outputs on the side from their first compiled call on, in one graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mhc_compile as mhc
from tests.nets.small import perturb, relative

transformers = pytest.importorskip("transformers")


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model: Any = transformers.LlamaForCausalLM(config)
    return model.eval()


@pytest.mark.slow
@torch.no_grad()
def test_hidden_states_in_one_graph() -> None:
    model, ids = llama(), torch.randint(64, (2, 5))
    mhc.upgrade(model, (ids,), {"use_cache": False})
    assert not any(layer._forward_hooks for layer in model.model.layers)
    perturb(model)
    expected = model(ids, use_cache=False).logits
    run: Any = torch.compile(model, backend="mhc", fullgraph=True, options={"compiler": "eager"})
    out = run(ids, use_cache=False, output_hidden_states=True)
    assert relative(out.logits, expected) < 1e-6
    assert len(out.hidden_states) == 3
    assert relative(model.lm_head(out.hidden_states[-1]), expected) < 1e-6
