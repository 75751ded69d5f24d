"""Text decoders with state-space layers, linear recurrences and linear attention."""

from __future__ import annotations

from bench.zoo.families.language.experts import MLA
from bench.zoo.family import LAYERS, each, hf
from bench.zoo.inputs import text
from bench.zoo.sizes import GROUPED, HEADED, NOTHING, SPECIAL, TEXT, WIDTH

MIXER = each("mixer")
SSM = {"state_size": 8, "conv_kernel": 4, "expand": 2, "num_hidden_layers": LAYERS, "hidden_size": WIDTH, **SPECIAL}
MAMBA2 = {**SSM, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}
JAMBA = {
    **GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
    "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
}  # fmt: skip
HEADS_OF_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
GRIFFIN = {**GROUPED, "lru_width": WIDTH, "attention_window_size": 8, "block_types": ["recurrent", "attention"]}
XLSTM = {
    **SPECIAL,
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "qk_dim_factor": 1.0,
    "num_heads": 4,
    "num_blocks": LAYERS,
    "chunk_size": 4,
    "mode": "inference",
}
KIMI = {
    **TEXT, **MLA, "q_lora_rank": None, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "linear_head_dim": 8, "linear_num_heads": 4, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
DEEPSEEK4 = {
    **TEXT, "head_dim": 16, "q_lora_rank": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "o_groups": 2, "o_lora_rank": 8, "index_n_heads": 2, "index_head_dim": 16,
    "index_topk": 4, "sliding_window": 8, "partial_rotary_factor": 0.5,
}  # fmt: skip
GEMMA3N = {
    **HEADED, "vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 8, "laurel_rank": 8,
    "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0], "layer_types": ["sliding_attention",
    "full_attention"],
}  # fmt: skip
HY4 = {
    **TEXT, **MLA, "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "index_topk": 8, "index_head_dim": 16, "index_n_heads": 2,
}  # fmt: skip

FAMILIES = (
    hf("mamba", "MambaForCausalLM", SSM, text, MIXER),
    hf("falcon_mamba", "FalconMambaForCausalLM", SSM, text, MIXER),
    hf("mamba2", "Mamba2ForCausalLM", MAMBA2, text, MIXER),
    hf(
        "rwkv",
        "RwkvForCausalLM",
        {
            **SPECIAL,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "attention_hidden_size": WIDTH,
            "context_length": 64,
            "use_cache": False,
        },
        text,
        each("time mix", "channel mix"),
    ),
    hf("xlstm", "xLSTMForCausalLM", XLSTM, text, each("mlstm", "mlp")),
    hf("recurrent_gemma", "RecurrentGemmaForCausalLM", GRIFFIN, text, each("temporal", "mlp")),
    hf("jamba", "JambaForCausalLM", JAMBA, text, each("mixer", "experts")),
    hf(
        "bamba",
        "BambaForCausalLM",
        {**GROUPED, **HEADS_OF_MAMBA, "attn_layer_indices": [1]},
        text,
        each("mixer", "mlp"),
    ),
    hf(
        "falcon_h1",
        "FalconH1ForCausalLM",
        {**HEADED, **HEADS_OF_MAMBA, "mamba_d_ssm": 64},
        text,
        each("attention with mamba", "mlp"),
    ),
    hf(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        {
            **GROUPED,
            **HEADS_OF_MAMBA,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
        },
        text,
        each("mixer", "experts"),
    ),
    hf(
        "nemotron_h",
        "NemotronHForCausalLM",
        {
            **HEADED,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 1,
            "ssm_state_size": 8,
            "chunk_size": 8,
        },
        text,
        each("mixer", layers=3),
    ),
    hf(
        "zamba",
        "ZambaForCausalLM",
        {
            **GROUPED,
            "layers_block_type": ["mamba", "hybrid", "hybrid"],
            "num_hidden_layers": 3,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "n_mamba_heads": 2,
            "attention_head_dim": 16,
            "use_mamba_kernels": False,
        },
        text,
        {"mamba": 3},
        note="the shared attention block has no residual of its own; its output joins the input of mamba",
    ),
    hf(
        "zamba2",
        "Zamba2ForCausalLM",
        {
            **GROUPED,
            "layers_block_type": ["mamba", "hybrid"],
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "mamba_ngroups": 1,
            "mamba_d_state": 8,
            "chunk_size": 8,
            "use_mamba_kernels": False,
            "num_mem_blocks": 1,
            "hybrid_layer_ids": [1],
            "adapter_rank": 4,
        },
        text,
        {"mamba": 2},
    ),
    hf(
        "lfm2",
        "Lfm2ForCausalLM",
        {**GROUPED, "layer_types": ["conv", "full_attention"], "block_ff_dim": 64},
        text,
        each("mixer", "mlp"),
    ),
    hf(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        {
            **GROUPED,
            "layer_types": ["conv", "full_attention"],
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "num_dense_layers": 1,
        },
        text,
        each("mixer", "experts"),
    ),
    hf("qwen3_next", "Qwen3NextForCausalLM", {**HEADED, **DELTA, **FEW}, text, each("mixer", "experts")),
    hf("qwen3_5", "Qwen3_5ForCausalLM", {**HEADED, **DELTA}, text, each("mixer", "mlp")),
    hf("qwen3_5_moe", "Qwen3_5MoeForCausalLM", {**HEADED, **DELTA, **FEW}, text, each("mixer", "experts")),
    hf("olmo_hybrid", "OlmoHybridForCausalLM", {**GROUPED, **DELTA}, text, each("mixer", "mlp")),
    hf("kimi_linear", "KimiLinearForCausalLM", KIMI, text, each("mixer", "experts")),
    hf(
        "deepseek_v4", "DeepseekV4ForCausalLM", DEEPSEEK4, text, NOTHING, note="hyper-connections already", streams=True
    ),
    hf("gemma3n", "Gemma3nForCausalLM", GEMMA3N, text, NOTHING, note="AltUp: four streams already", streams=True),
    hf("hy_v4", "HYV4ForCausalLM", HY4, text, NOTHING, note="hyper-connections already", streams=True),
)
