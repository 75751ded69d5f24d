"""Tiny models of `transformers` with random weights, and what their configs say about residual adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

VOCABULARY = 100
LAYERS = 2
SIZES: dict[str, Any] = {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": VOCABULARY}
TEXT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, **SIZES}
GROUPED: dict[str, Any] = {**TEXT, "num_key_value_heads": 2}
IMAGE: dict[str, Any] = {**TEXT, "image_size": 16, "patch_size": 4}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64}
WHISPER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
T5: dict[str, Any] = {
    "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": LAYERS, "num_heads": 4, "vocab_size": VOCABULARY,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its call, and its residual adds, counted by hand from the paper's block and the config."""

    model: Callable[[], nn.Module]
    call: Callable[[], dict[str, Any]]
    sites: int
    adds: int
    regions: int = 1  # an encoder and a decoder have one each

    def make(self) -> tuple[nn.Module, dict[str, Any]]:
        """The same weights and the same arguments every time."""
        torch.manual_seed(0)
        return self.model(), self.call()


def tokens(length: int = 12) -> Tensor:
    return torch.randint(3, VOCABULARY, (2, length))


def text() -> dict[str, Any]:
    return {"input_ids": tokens()}


def picture() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 16, 16)}


def translation() -> dict[str, Any]:
    return {"input_ids": tokens(), "decoder_input_ids": tokens(7)}


def speech() -> dict[str, Any]:
    return {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": tokens(7)}


TWO, THREE = 2 * LAYERS, 3 * LAYERS  # attention and MLP; a decoder's cross attention is the third
ONE = LAYERS  # attention and MLP side by side: one site, which is `x + attn + mlp` or `(mlp + attn) + x`

CASES: dict[str, Case] = {
    "llama": Case(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)), text, TWO, TWO),
    "gpt2": Case(lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT)), text, TWO, TWO),
    "qwen3": Case(lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=8)), text, TWO, TWO),
    "gemma": Case(lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**GROUPED, head_dim=8)), text, TWO, TWO),
    "gemma2": Case(lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GROUPED, head_dim=8)), text, TWO, TWO),
    "neox": Case(lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**TEXT)), text, ONE, ONE),
    "gptj": Case(lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**GPT, rotary_dim=4)), text, ONE, ONE),
    "cohere": Case(lambda: hf.CohereForCausalLM(hf.CohereConfig(**GROUPED)), text, ONE, TWO),
    "bert": Case(lambda: hf.BertModel(hf.BertConfig(**TEXT)), text, TWO, TWO),
    "t5": Case(lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)), translation, TWO + THREE, TWO + THREE, 2),
    "whisper": Case(
        lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(**WHISPER)), speech, TWO + THREE, TWO + THREE, 2
    ),
    "vit": Case(lambda: hf.ViTModel(hf.ViTConfig(**IMAGE)), picture, TWO, TWO),
    "beit": Case(lambda: hf.BeitModel(hf.BeitConfig(**IMAGE)), picture, TWO, TWO),
    "albert": Case(lambda: hf.AlbertModel(hf.AlbertConfig(**TEXT, embedding_size=16)), text, TWO, TWO),
    "mixtral": Case(lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**GROUPED, num_local_experts=4)), text, TWO, TWO),
}
