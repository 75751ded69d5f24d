"""torch_transformers: torch's own encoders and decoders have their sites, whatever the mask, trained or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import EagerAndRecordGraphs

import mhc_compile as mhc
from tests.nets.small import made, perturb, relative

T = 5
MASKS = {
    "none": None,
    "causal": nn.Transformer.generate_square_subsequent_mask(T),
    "wild": torch.rand(T, T, generator=torch.Generator().manual_seed(1)).gt(0.7).fill_diagonal_(False),
}


def layer(kind: type[nn.Module] = nn.TransformerEncoderLayer, **named: Any) -> Any:
    return kind(16, 2, 32, 0.0, **{"batch_first": True, "norm_first": True} | named)


def encoder(kind: type[nn.Module] = nn.TransformerEncoderLayer, **named: Any) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(layer(kind, **named), 2, enable_nested_tensor=False)


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(16, 2, 2, 2, 32, 0.0, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor | None = None, is_causal: bool | None = None) -> Tensor:
        told = {"src_is_causal": is_causal, "tgt_is_causal": is_causal}
        out: Tensor = self.body(x, x.flip(0), mask, mask, **told)
        return out


@pytest.mark.core(1)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("make", [encoder, lambda: encoder(norm_first=False), Translator], ids=["pre", "post", "both"])
def test_every_mask_in_every_mode(make: Any, mask: str, training: bool, grad: bool) -> None:
    """Upgraded as it is called here, it computes what it does in training with gradients, told what the mask is."""
    x, given = torch.randn(3, T, 16), MASKS[mask]
    model = made(make).train(training)
    with torch.set_grad_enabled(grad):
        plain = model(x, given)
        report = mhc.upgrade(model, (x, given))
        assert sum(site.adds for site in report.sites) == (10 if make is Translator else 4)
        assert relative(model(x, given), plain) < 1e-6
        perturb(model)
        out = torch.compile(model, backend="mhc", options={"compiler": "eager"})(x, given)
    expected = model.train()(x, given, is_causal=False)
    assert relative(expected, plain) > 1e-2
    assert relative(out, expected) < 1e-6


def test_frozen(moved: bool) -> None:
    """Nothing asks for gradients, and so torch would run each layer as one op, gradients enabled or not."""
    model, x = made(encoder).eval().requires_grad_(False), torch.randn(3, T, 16)
    plain = model(x)
    assert len(mhc.upgrade(model, (x,)).sites) == 4
    perturb(model, 0.5 if moved else 0.0)
    assert (relative(model(x), plain) > 1e-2) if moved else (relative(model(x), plain) < 1e-6)
    assert relative(model(x), model.train()(x)) < 1e-6


class Trusting(nn.TransformerEncoderLayer):
    """Its attention believes what it is told, and never looks at the mask."""

    def forward(self, src: Tensor, *_: Any, is_causal: bool = False, **others: Any) -> Any:
        x = self.norm1(src).unsqueeze(1)
        return src + nn.functional.scaled_dot_product_attention(x, x, x, is_causal=is_causal).squeeze(1)


def test_who_trusts_the_answer_gets_it() -> None:
    model, x = made(lambda: encoder(Trusting)), torch.randn(3, T, 16)
    expected = model(x, MASKS["causal"])
    assert relative(model(x, MASKS["wild"]), expected) > 1e-2
    run = torch.compile(model, backend="mhc", options={"compiler": "eager"})
    for _ in range(2):
        assert relative(run(x, MASKS["causal"]), expected) < 1e-6


def test_other_backends_trace_what_they_traced() -> None:
    model, x, seen = made(encoder), torch.randn(3, T, 16), EagerAndRecordGraphs()
    broken = torch._dynamo.utils.counters["graph_break"]
    broken.clear()
    torch.compile(model, backend=seen)(x, MASKS["causal"])
    assert broken
    with torch.no_grad():
        torch.compile(model.eval(), backend=seen)(x)
    assert "transformer_encoder_layer_fwd" in seen.graphs[-1].code


def test_a_process_group_makes_torch_read_its_rules_again() -> None:
    torch._dynamo.trace_rules.clear_lru_cache()  # as init_process_group does
    model, x = made(encoder).eval(), torch.randn(3, T, 16)
    with torch.no_grad():
        assert len(mhc.explain(model, (x, MASKS["causal"])).sites) == 4
