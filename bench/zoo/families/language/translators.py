"""Text in, text out: an encoder and a decoder."""

from __future__ import annotations

from bench.zoo.family import LAYERS, each, hf, under
from bench.zoo.inputs import text, translation
from bench.zoo.sizes import BART, BLOCK, CROSS, HEADED, SPECIAL, T5, TEXT, TRANSLATION, WIDTH

FSMT = {**BART, "src_vocab_size": 100, "tgt_vocab_size": 100, "langs": ["en", "de"]}
FSMT.pop("vocab_size")
PROPHET = {
    **SPECIAL, "hidden_size": WIDTH, "num_encoder_layers": LAYERS, "num_decoder_layers": LAYERS, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
    "max_position_embeddings": 64, "ngram": 2,
}  # fmt: skip
BERTS = {
    "encoder": {"model_type": "bert", **TEXT},
    "decoder": {"model_type": "bert", **TEXT, "is_decoder": True, "add_cross_attention": True},
    "decoder_start_token_id": 1,
    "pad_token_id": 0,
}
GEMMAS = {"encoder": HEADED, "decoder": HEADED, "vocab_size": 100}
EXPERT = {"num_experts": 4, "expert_capacity": 16}

FAMILIES = (
    hf("bart", "BartForConditionalGeneration", BART, translation, TRANSLATION),
    hf("mbart", "MBartForConditionalGeneration", BART, translation, TRANSLATION),
    hf("blenderbot", "BlenderbotForConditionalGeneration", BART, translation, TRANSLATION),
    hf("blenderbot_small", "BlenderbotSmallForConditionalGeneration", BART, translation, TRANSLATION),
    hf(
        "bigbird_pegasus",
        "BigBirdPegasusForConditionalGeneration",
        {**BART, "attention_type": "original_full"},
        translation,
        TRANSLATION,
    ),
    hf("fsmt", "FSMTForConditionalGeneration", FSMT, translation, TRANSLATION),
    hf(
        "led",
        "LEDForConditionalGeneration",
        {
            **BART,
            "attention_window": [4, 4],
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
        },
        translation,
        TRANSLATION,
    ),
    hf("m2m_100", "M2M100ForConditionalGeneration", BART, translation, TRANSLATION),
    hf("marian", "MarianMTModel", BART, translation, TRANSLATION),
    hf("mvp", "MvpForConditionalGeneration", BART, translation, TRANSLATION),
    hf(
        "nllb_moe",
        "NllbMoeForConditionalGeneration",
        {**BART, **EXPERT, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
        translation,
        TRANSLATION,
    ),
    hf("pegasus", "PegasusForConditionalGeneration", BART, translation, TRANSLATION),
    hf(
        "pegasus_x",
        "PegasusXForConditionalGeneration",
        {**BART, "block_size": 4, "num_global_tokens": 4},
        translation,
        {**under("encoder", each("attention", "mlp", "global attention", "global mlp")), **under("decoder", CROSS)},
        note="global tokens are a second stream through the same layers; the last mlp of it reaches no output",
        still=3,
    ),
    hf("plbart", "PLBartForConditionalGeneration", BART, translation, TRANSLATION),
    hf("prophetnet", "ProphetNetForConditionalGeneration", PROPHET, translation, TRANSLATION),
    hf("t5", "T5ForConditionalGeneration", T5, translation, TRANSLATION),
    hf("mt5", "MT5ForConditionalGeneration", T5, translation, TRANSLATION),
    hf("umt5", "UMT5ForConditionalGeneration", T5, translation, TRANSLATION),
    hf(
        "longt5",
        "LongT5ForConditionalGeneration",
        {**T5, "encoder_attention_type": "transient-global", "local_radius": 3, "global_block_size": 4},
        translation,
        TRANSLATION,
    ),
    hf(
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        {**T5, **EXPERT, "num_decoder_layers": LAYERS, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        translation,
        TRANSLATION,
    ),
    hf("t5gemma", "T5GemmaForConditionalGeneration", GEMMAS, translation, TRANSLATION),
    hf("encoder_decoder", "EncoderDecoderModel", BERTS, translation, TRANSLATION),
    hf(
        "trocr_decoder",
        "TrOCRForCausalLM",
        {**SPECIAL, "d_model": WIDTH, "decoder_layers": LAYERS, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
        text,
        BLOCK,
    ),
)
