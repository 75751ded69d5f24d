"""Text decoders, dense."""

from __future__ import annotations

from bench.zoo.family import LAYERS, hf
from bench.zoo.inputs import masked_text, text
from bench.zoo.sizes import BLOCK, GPT, GROUPED, HEADED, PARALLEL, SPECIAL, TEXT, WIDTH

BLOOM = {**SPECIAL, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 4}
MPT = {**SPECIAL, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 64}
OPT = {**TEXT, "ffn_dim": 64, "word_embed_proj_dim": WIDTH, "max_position_embeddings": 64}
NEO = {
    **SPECIAL,
    "hidden_size": WIDTH,
    "num_layers": LAYERS,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
}
MLA = {
    **TEXT, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip

FAMILIES = (
    hf("llama", "LlamaForCausalLM", GROUPED, text, BLOCK),
    hf("gpt2", "GPT2LMHeadModel", GPT, text, BLOCK),
    hf("gpt_neo", "GPTNeoForCausalLM", NEO, text, BLOCK),
    hf("gptj", "GPTJForCausalLM", {**GPT, "rotary_dim": 4}, text, PARALLEL),
    hf("gpt_neox", "GPTNeoXForCausalLM", TEXT, text, PARALLEL),
    hf("gpt_neox_sequential", "GPTNeoXForCausalLM", {**TEXT, "use_parallel_residual": False}, text, BLOCK),
    hf("gpt_neox_japanese", "GPTNeoXJapaneseForCausalLM", TEXT, text, BLOCK),
    hf("gpt_bigcode", "GPTBigCodeForCausalLM", GPT, text, BLOCK),
    hf("openai", "OpenAIGPTLMHeadModel", GPT, text, BLOCK, note="post-norm decoder"),
    hf("codegen", "CodeGenForCausalLM", {**GPT, "rotary_dim": 4}, text, PARALLEL),
    hf("ctrl", "CTRLLMHeadModel", {**GPT, "dff": 64}, text, BLOCK),
    hf("opt", "OPTForCausalLM", OPT, text, BLOCK),
    hf("bloom", "BloomForCausalLM", BLOOM, text, BLOCK),
    hf("mpt", "MptForCausalLM", MPT, text, BLOCK),
    hf("falcon", "FalconForCausalLM", TEXT, text, PARALLEL),
    hf("falcon_sequential", "FalconForCausalLM", {**TEXT, "parallel_attn": False}, text, BLOCK),
    hf("falcon_two_norms", "FalconForCausalLM", {**TEXT, "new_decoder_architecture": True}, text, PARALLEL),
    hf("persimmon", "PersimmonForCausalLM", TEXT, text, BLOCK),
    hf("phi", "PhiForCausalLM", TEXT, text, PARALLEL, quick=True),
    hf("phi3", "Phi3ForCausalLM", GROUPED, text, BLOCK),
    hf("stablelm", "StableLmForCausalLM", GROUPED, text, BLOCK),
    hf("stablelm_parallel", "StableLmForCausalLM", {**GROUPED, "use_parallel_residual": True}, text, PARALLEL),
    hf("starcoder2", "Starcoder2ForCausalLM", GROUPED, text, BLOCK),
    hf("mistral", "MistralForCausalLM", {**GROUPED, "sliding_window": 8}, text, BLOCK),
    hf("ministral", "MinistralForCausalLM", HEADED, text, BLOCK),
    hf("ministral3", "Ministral3ForCausalLM", HEADED, text, BLOCK),
    hf("qwen2", "Qwen2ForCausalLM", GROUPED, masked_text, BLOCK, note="with a padding mask"),
    hf("qwen3", "Qwen3ForCausalLM", HEADED, text, BLOCK),
    hf("gemma", "GemmaForCausalLM", HEADED, text, BLOCK),
    hf("gemma2", "Gemma2ForCausalLM", HEADED, text, BLOCK, note="a norm on either side of each branch"),
    hf("gemma3", "Gemma3ForCausalLM", HEADED, text, BLOCK),
    hf("vaultgemma", "VaultGemmaForCausalLM", HEADED, text, BLOCK),
    hf("olmo", "OlmoForCausalLM", GROUPED, text, BLOCK),
    hf("olmo2", "Olmo2ForCausalLM", GROUPED, text, BLOCK, note="norms only behind the branches", quick=True),
    hf("olmo3", "Olmo3ForCausalLM", GROUPED, text, BLOCK),
    hf("cohere", "CohereForCausalLM", GROUPED, text, PARALLEL),
    hf("cohere2", "Cohere2ForCausalLM", HEADED, text, PARALLEL),
    hf(
        "granite",
        "GraniteForCausalLM",
        {**GROUPED, "residual_multiplier": 0.22},
        text,
        BLOCK,
        note="scaled branches",
    ),
    hf("granite_swa", "GraniteSWAForCausalLM", GROUPED, text, BLOCK),
    hf("glm", "GlmForCausalLM", HEADED, text, BLOCK),
    hf("glm4", "Glm4ForCausalLM", HEADED, text, BLOCK),
    hf("helium", "HeliumForCausalLM", HEADED, text, BLOCK),
    hf("arcee", "ArceeForCausalLM", GROUPED, text, BLOCK),
    hf("apertus", "ApertusForCausalLM", GROUPED, text, BLOCK),
    hf("bitnet", "BitNetForCausalLM", GROUPED, text, BLOCK),
    hf("biogpt", "BioGptForCausalLM", TEXT, text, BLOCK),
    hf("cwm", "CwmForCausalLM", HEADED, text, BLOCK),
    hf("diffllama", "DiffLlamaForCausalLM", GROUPED, text, BLOCK),
    hf("doge", "DogeForCausalLM", GROUPED, text, BLOCK, note="carrier times a learned vector"),
    hf("ernie4_5", "Ernie4_5ForCausalLM", HEADED, text, BLOCK),
    hf("exaone4", "Exaone4ForCausalLM", GROUPED, text, BLOCK),
    hf("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", HEADED, text, BLOCK),
    hf("hyperclovax", "HyperCLOVAXForCausalLM", GROUPED, text, BLOCK),
    hf("jais2", "Jais2ForCausalLM", GROUPED, text, BLOCK),
    hf("minicpm3", "MiniCPM3ForCausalLM", MLA, text, BLOCK),
    hf("modernbert_decoder", "ModernBertDecoderForCausalLM", TEXT, text, BLOCK),
    hf("nanochat", "NanoChatForCausalLM", GROUPED, text, BLOCK),
    hf("nemotron", "NemotronForCausalLM", GROUPED, text, BLOCK),
    hf("seed_oss", "SeedOssForCausalLM", HEADED, text, BLOCK),
    hf("smollm3", "SmolLM3ForCausalLM", GROUPED, text, BLOCK),
    hf("youtu", "YoutuForCausalLM", MLA, text, BLOCK),
    hf(
        "xglm",
        "XGLMForCausalLM",
        {**SPECIAL, "d_model": WIDTH, "num_layers": LAYERS, "attention_heads": 4, "ffn_dim": 64},
        text,
        BLOCK,
    ),
)
