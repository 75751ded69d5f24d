"""Text decoders with mixtures of experts."""

from __future__ import annotations

from bench.zoo.family import LAYERS, each, hf
from bench.zoo.inputs import text
from bench.zoo.sizes import EXPERTS, GROUPED, HEADED, PARALLEL, SPECIAL, TEXT, WIDTH

FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
SPARSE = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8}
DBRX = {
    **SPECIAL, "d_model": WIDTH, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 64,
    "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
}  # fmt: skip
ONE_OF_FOUR = each("first attention", "first mlp", "second attention", "second mlp with experts")

FAMILIES = (
    hf("mixtral", "MixtralForCausalLM", {**GROUPED, **LOCAL}, text, EXPERTS),
    hf("qwen2_moe", "Qwen2MoeForCausalLM", {**GROUPED, **FEW, "shared_expert_intermediate_size": 32}, text, EXPERTS),
    hf("qwen3_moe", "Qwen3MoeForCausalLM", {**HEADED, **FEW}, text, EXPERTS),
    hf("olmoe", "OlmoeForCausalLM", {**GROUPED, **FEW}, text, EXPERTS),
    hf("flex_olmo", "FlexOlmoForCausalLM", {**GROUPED, **FEW}, text, EXPERTS),
    hf("granitemoe", "GraniteMoeForCausalLM", {**GROUPED, **LOCAL}, text, EXPERTS),
    hf(
        "granitemoeshared",
        "GraniteMoeSharedForCausalLM",
        {**GROUPED, **LOCAL, "shared_intermediate_size": 32},
        text,
        EXPERTS,
    ),
    hf("phimoe", "PhimoeForCausalLM", {**GROUPED, **LOCAL}, text, EXPERTS),
    hf("gpt_oss", "GptOssForCausalLM", {**HEADED, **LOCAL}, text, EXPERTS),
    hf("deepseek_v2", "DeepseekV2ForCausalLM", {**TEXT, **MLA, **ROUTED, "topk_method": "greedy"}, text, EXPERTS),
    hf("deepseek_v3", "DeepseekV3ForCausalLM", {**TEXT, **MLA, **ROUTED}, text, EXPERTS),
    hf("deepseek_v32", "DeepseekV32ForCausalLM", {**TEXT, **MLA, **ROUTED, **SPARSE}, text, EXPERTS),
    hf("glm4_moe", "Glm4MoeForCausalLM", {**HEADED, **ROUTED}, text, EXPERTS),
    hf("glm4_moe_lite", "Glm4MoeLiteForCausalLM", {**TEXT, **MLA, **ROUTED}, text, EXPERTS),
    hf("glm_moe_dsa", "GlmMoeDsaForCausalLM", {**TEXT, **MLA, **ROUTED, **SPARSE}, text, EXPERTS),
    hf("dots1", "Dots1ForCausalLM", {**HEADED, **ROUTED}, text, EXPERTS),
    hf(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        {**GROUPED, **FEW, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
        text,
        EXPERTS,
    ),
    hf("exaone_moe", "ExaoneMoeForCausalLM", {**HEADED, **FEW}, text, EXPERTS),
    hf("afmoe", "AfmoeForCausalLM", {**HEADED, **FEW, "num_dense_layers": 1}, text, EXPERTS),
    hf("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", {**HEADED, "num_experts": 4, "moe_topk": 2}, text, EXPERTS),
    hf("hy_v3", "HYV3ForCausalLM", {**HEADED, **FEW}, text, EXPERTS),
    hf("cohere2_moe", "Cohere2MoeForCausalLM", {**HEADED, **FEW}, text, PARALLEL),
    hf("jetmoe", "JetMoeForCausalLM", {**GROUPED, **LOCAL, "kv_channels": 8}, text, EXPERTS),
    hf("dbrx", "DbrxForCausalLM", DBRX, text, EXPERTS),
    hf("minimax", "MiniMaxForCausalLM", {**HEADED, **LOCAL}, text, EXPERTS, note="scaled carrier, linear attention"),
    hf("minimax_m2", "MiniMaxM2ForCausalLM", {**HEADED, **LOCAL}, text, EXPERTS),
    hf("mimo_v2_flash", "MiMoV2FlashForCausalLM", {**HEADED, **ROUTED}, text, EXPERTS),
    hf(
        "longcat_flash",
        "LongcatFlashForCausalLM",
        {
            **TEXT,
            **MLA,
            "head_dim": 8,
            "num_layers": LAYERS,
            "ffn_hidden_size": 64,
            "expert_ffn_hidden_size": 32,
            "n_routed_experts": 4,
            "moe_topk": 2,
            "zero_expert_num": 1,
        },
        text,
        ONE_OF_FOUR,
        note="experts beside the second half of a layer: x + mlp + experts is one connection",
    ),
    hf("solar_open", "SolarOpenForCausalLM", {**HEADED, **ROUTED}, text, EXPERTS),
    hf("laguna", "LagunaForCausalLM", {**HEADED, **FEW}, text, EXPERTS),
    hf("flint", "FlintForCausalLM", {**HEADED, **FEW}, text, EXPERTS),
    hf("mellum", "MellumForCausalLM", {**HEADED, **FEW}, text, EXPERTS),
    hf("kolibri1", "Kolibri1ForCausalLM", {**HEADED, **ROUTED}, text, EXPERTS),
    hf("beam", "BeamForCausalLM", {**HEADED, **FEW}, text, EXPERTS, note="carrier and branch scaled by depth"),
    hf(
        "zaya",
        "ZayaForCausalLM",
        {**HEADED, **FEW, "num_experts_per_tok": 1, "router_hidden_size": 16},
        text,
        EXPERTS,
        note="affine of carrier and of branch",
    ),
    hf("axk1", "AXK1ForCausalLM", {**TEXT, **MLA, **ROUTED}, text, EXPERTS),
    hf("openai_privacy_filter", "OpenAIPrivacyFilterModel", {**HEADED, **LOCAL}, text, EXPERTS),
    hf("llama4_text", "Llama4ForCausalLM", {**HEADED, **LOCAL, "intermediate_size_mlp": 64}, text, EXPERTS),
    hf("doge_moe", "DogeForCausalLM", {**GROUPED, **FEW, "is_moe": True}, text, EXPERTS),
)
