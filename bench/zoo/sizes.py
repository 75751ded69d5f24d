"""Sizes that families share, and what their layers hold."""

from __future__ import annotations

from typing import Any

from bench.zoo.family import LAYERS, each, under
from bench.zoo.inputs import SIDE, VOCABULARY

WIDTH, HEADS = 32, 4

SPECIAL: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
STACK: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
MLP: dict[str, Any] = {"intermediate_size": 64}
TEXT: dict[str, Any] = {**STACK, **MLP, **SPECIAL}
GROUPED: dict[str, Any] = {**TEXT, "num_key_value_heads": 2}
HEADED: dict[str, Any] = {**GROUPED, "head_dim": 8}
GPT: dict[str, Any] = {**SPECIAL, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
T5: dict[str, Any] = {
    **SPECIAL, "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": LAYERS, "num_heads": HEADS,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART: dict[str, Any] = {
    **SPECIAL, "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "decoder_start_token_id": 1,
    "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
IMAGE: dict[str, Any] = {**STACK, **MLP, "image_size": SIDE, "patch_size": 8}

# residual connections by what the branch is
BLOCK = each("attention", "mlp")
PARALLEL = each("attention with mlp")  # x + attention(norm(x)) + mlp(norm(x)): one connection of two branches
EXPERTS = each("attention", "experts")
CROSS = each("self attention", "cross attention", "mlp")
TRANSLATION = {**under("encoder", BLOCK), **under("decoder", CROSS)}
NOTHING: dict[str, int] = {}
