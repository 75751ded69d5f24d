"""x-transformers: one implementation, many ways to build a residual."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from bench.zoo.family import LAYERS, Family, Parts, each
from bench.zoo.inputs import SIDE, VOCABULARY, as_call, ids, image
from bench.zoo.sizes import BLOCK, NOTHING, WIDTH


def xt(
    name: str, parts: Parts, *, stack: str = "Decoder", note: str = "", streams: bool = False, **options: Any
) -> Family:
    """A language model whose stack has these options."""

    def build() -> nn.Module:
        x = importlib.import_module("x_transformers")
        layers = getattr(x, stack)(**{"dim": WIDTH, "depth": LAYERS, "heads": 4, "attn_dim_head": 8, **options})
        made: nn.Module = x.TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=16, attn_layers=layers)
        return made

    return Family("x-transformers", name, build, lambda: as_call(ids()), parts, note, streams=streams)


def translator() -> nn.Module:
    """An encoder and a decoder with cross attention, as XTransformer would wrap them for training."""
    x = importlib.import_module("x_transformers")
    sizes = {"dim": WIDTH, "depth": LAYERS, "heads": 4, "attn_dim_head": 8}
    encoder = x.TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=16, attn_layers=x.Encoder(**sizes))
    decoder = x.TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=16, attn_layers=x.Decoder(**sizes, cross_attend=True)
    )
    return _Translator(encoder, decoder)


class _Translator(nn.Module):
    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, source: Any, target: Any) -> Any:
        return self.decoder(target, context=self.encoder(source, return_embeddings=True))


def looker() -> nn.Module:
    """A vision transformer."""
    x = importlib.import_module("x_transformers")
    layers = x.Encoder(dim=WIDTH, depth=LAYERS, heads=4, attn_dim_head=8)
    made: nn.Module = x.ViTransformerWrapper(image_size=SIDE, patch_size=8, num_classes=10, attn_layers=layers)
    return made


MACARON = each("first half mlp", "attention", "second half mlp")

FAMILIES = (
    xt("decoder", BLOCK),
    xt("encoder", BLOCK, stack="Encoder"),
    xt("rotary", BLOCK, rotary_pos_emb=True),
    xt("alibi", BLOCK, alibi_pos_bias=True),
    xt("rmsnorm_glu", BLOCK, use_rmsnorm=True, ff_glu=True, ff_swish=True),
    xt("post_norm", BLOCK, pre_norm=False),
    xt("sandwich_norm", BLOCK, sandwich_norm=True),
    xt("macaron", MACARON, macaron=True),
    xt("sandwich_order", BLOCK, sandwich_coef=1),
    xt("scale_residual", BLOCK, scale_residual=True, note="a learned vector on the carrier"),
    xt("scale_residual_constant", BLOCK, pre_norm=False, scale_residual_constant=1.5),
    xt("gate_residual", NOTHING, gate_residual=True, note="a GRU in place of the add"),
    xt("orthog_residual", BLOCK, orthog_residual=True),
    xt("layerscale", BLOCK, use_layerscale=True),
    xt(
        "residual_attn",
        BLOCK,
        residual_attn=True,
        note="attention scores are carried from layer to layer too",
    ),
    xt("qk_norm", BLOCK, attn_qk_norm=True),
    xt("shift_tokens", BLOCK, shift_tokens=1),
    xt("value_residual", BLOCK, add_value_residual=True),
    xt("weight_tied", BLOCK, weight_tie_layers=True, note="one set of weights for all layers"),
    xt("hyper_connections", NOTHING, num_residual_streams=4, note="hyper-connections already", streams=True),
    Family(
        "x-transformers",
        "translator",
        translator,
        lambda: as_call((ids(), ids(7))),
        {**BLOCK, "self attention of the decoder": 2, "cross attention": 2, "mlp of the decoder": 2},
    ),
    Family("x-transformers", "vit", looker, lambda: as_call(image()), BLOCK),
)
