"""Text encoders."""

from __future__ import annotations

from typing import Any

import torch

from bench.zoo.family import LAYERS, each, hf
from bench.zoo.inputs import ids, text
from bench.zoo.sizes import BLOCK, GROUPED, SPECIAL, TEXT, WIDTH

ROTARY = {**TEXT, "max_position_embeddings": 64}
XLM = {**SPECIAL, "emb_dim": WIDTH, "n_layers": LAYERS, "n_heads": 4, "max_position_embeddings": 64}
DISTIL = {**SPECIAL, "dim": WIDTH, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 64}
XLNET = {**SPECIAL, "d_model": WIDTH, "n_layer": LAYERS, "n_head": 4, "d_inner": 64}
DEBERTA = {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
FUNNEL = {
    **SPECIAL,
    "block_sizes": [1, 1],
    "num_decoder_layers": 1,
    "d_model": WIDTH,
    "n_head": 4,
    "d_head": 8,
    "d_inner": 64,
}
MOBILE = {
    **TEXT,
    "embedding_size": 16,
    "true_hidden_size": 16,
    "intra_bottleneck_size": 16,
    "num_feedforward_networks": 3,
}
REFORMER = {
    **SPECIAL, "hidden_size": WIDTH, "num_attention_heads": 2, "attention_head_size": 16, "attn_layers": ["local",
    "lsh"],
    "feed_forward_size": 64, "axial_pos_shape": [4, 4], "axial_pos_embds_dim": [16, 16], "local_attn_chunk_length": 4,
    "lsh_attn_chunk_length": 4, "num_buckets": 2, "is_decoder": False, "hash_seed": 0, "max_position_embeddings": 16,
}  # fmt: skip
XMOD = {**TEXT, "languages": ["en_XX"], "default_language": "en_XX", "adapter_reuse_layer_norm": True}
CANINE = {
    **TEXT,
    "local_transformer_stride": 8,
    "num_hash_buckets": 64,
    "max_position_embeddings": 64,
    "downsampling_rate": 4,
}
PERCEIVER = {
    "num_latents": 6, "d_latents": WIDTH, "d_model": WIDTH, "num_blocks": 1, "num_self_attends_per_block": LAYERS,
    "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 12,
    "qk_channels": WIDTH, "v_channels": WIDTH,
}  # fmt: skip


def boxed() -> dict[str, Any]:
    """Tokens with a box on the page each."""
    corner = torch.randint(0, 20, (2, 12, 2))
    return {"input_ids": ids(), "bbox": torch.cat([corner, corner + 10], -1)}


def sixteen() -> dict[str, Any]:
    """Sixteen tokens."""
    return {"input_ids": ids(16)}


def brackets() -> dict[str, Any]:
    """Tokens with a box of four coordinates each."""
    return {"input_ids": ids(), "bbox": torch.rand(2, 12, 4)}


def perceived() -> dict[str, Any]:
    """Tokens, under the name that Perceiver uses."""
    return {"inputs": ids()}


FAMILIES = (
    hf("bert", "BertModel", TEXT, text, BLOCK),
    hf("bert_generation", "BertGenerationEncoder", TEXT, text, BLOCK),
    hf(
        "albert",
        "AlbertModel",
        {**TEXT, "embedding_size": 16},
        text,
        BLOCK,
        note="one set of weights for all layers",
    ),
    hf("roberta", "RobertaModel", TEXT, text, BLOCK),
    hf("roberta_prelayernorm", "RobertaPreLayerNormModel", TEXT, text, BLOCK),
    hf("xlm_roberta_xl", "XLMRobertaXLModel", TEXT, text, BLOCK),
    hf("data2vec_text", "Data2VecTextModel", TEXT, text, BLOCK),
    hf("big_bird", "BigBirdModel", TEXT, text, BLOCK),
    hf("bros", "BrosModel", {**TEXT, "dim_bbox": 4}, brackets, BLOCK),
    hf(
        "canine",
        "CanineModel",
        CANINE,
        sixteen,
        each("attention", "mlp", layers=LAYERS + 2),
        note="a layer on characters before and behind the stack",
    ),
    hf("convbert", "ConvBertModel", {**TEXT, "embedding_size": WIDTH}, text, BLOCK),
    hf("deberta", "DebertaModel", DEBERTA, text, BLOCK),
    hf("deberta_v2", "DebertaV2Model", DEBERTA, text, BLOCK),
    hf("distilbert", "DistilBertModel", DISTIL, text, BLOCK),
    hf("electra", "ElectraModel", {**TEXT, "embedding_size": 16}, text, BLOCK),
    hf("ernie", "ErnieModel", TEXT, text, BLOCK),
    hf("esm", "EsmModel", {**TEXT, "position_embedding_type": "rotary"}, text, BLOCK),
    hf("esmc", "EsmcModel", TEXT, text, BLOCK),
    hf("eurobert", "EuroBertModel", GROUPED, text, BLOCK),
    hf("flaubert", "FlaubertModel", XLM, text, BLOCK),
    hf("fnet", "FNetModel", TEXT, text, each("fourier", "mlp")),
    hf("funnel", "FunnelModel", FUNNEL, text, {**each("attention", "mlp", layers=3), "skip over the pooled stack": 1}),
    hf("gte", "GteModel", ROTARY, text, BLOCK),
    hf("ibert", "IBertModel", TEXT, text, BLOCK),
    hf("jina_embeddings_v3", "JinaEmbeddingsV3Model", ROTARY, text, BLOCK),
    hf("layoutlm", "LayoutLMModel", TEXT, boxed, BLOCK),
    hf(
        "layoutlmv3",
        "LayoutLMv3Model",
        {**TEXT, "coordinate_size": 5, "shape_size": 6, "visual_embed": False},
        boxed,
        BLOCK,
    ),
    hf(
        "lilt",
        "LiltModel",
        {**TEXT, "hidden_size": 48, "max_2d_position_embeddings": 64},
        boxed,
        each("text attention", "text mlp", "layout attention", "layout mlp"),
    ),
    hf("longformer", "LongformerModel", {**TEXT, "attention_window": [4, 4]}, text, BLOCK),
    hf("luke", "LukeModel", {**TEXT, "entity_vocab_size": 10, "entity_emb_size": 16}, text, BLOCK),
    hf("markuplm", "MarkupLMModel", TEXT, text, BLOCK),
    hf("megatron_bert", "MegatronBertModel", TEXT, text, BLOCK),
    hf(
        "mobilebert",
        "MobileBertModel",
        MOBILE,
        text,
        each("attention with a learned shortcut", "first mlp", "second mlp", "last mlp", "bottleneck"),
        note="the bottleneck's residual goes around the others of its layer",
    ),
    hf("modernbert", "ModernBertModel", TEXT, text, BLOCK),
    hf("mpnet", "MPNetModel", TEXT, text, BLOCK),
    hf("mra", "MraModel", {**TEXT, "max_position_embeddings": 64}, text, BLOCK),
    hf("nomic_bert", "NomicBertModel", ROTARY, text, BLOCK),
    hf(
        "nystromformer", "NystromformerModel", {**TEXT, "segment_means_seq_len": 16, "num_landmarks": 4}, sixteen, BLOCK
    ),
    hf(
        "perceiver",
        "PerceiverForMaskedLM",
        PERCEIVER,
        perceived,
        {**each("self attention", "self mlp"), "cross attention": 1, "cross mlp": 1, "decoder mlp": 1},
    ),
    hf("reformer", "ReformerModel", REFORMER, sixteen, BLOCK, note="reversible: two streams that read each other"),
    hf("rembert", "RemBertModel", {**TEXT, "input_embedding_size": 16}, text, BLOCK),
    hf("roc_bert", "RoCBertModel", {**TEXT, "enable_pronunciation": False, "enable_shape": False}, text, BLOCK),
    hf("roformer", "RoFormerModel", {**TEXT, "embedding_size": WIDTH}, text, BLOCK),
    hf("splinter", "SplinterModel", TEXT, text, BLOCK),
    hf(
        "squeezebert",
        "SqueezeBertModel",
        {**TEXT, "embedding_size": WIDTH},
        text,
        BLOCK,
        note="features on the second axis",
    ),
    hf("tapas", "TapasModel", TEXT, text, BLOCK),
    hf("ultrabert", "UltrabertModel", TEXT, text, BLOCK),
    hf("xlm", "XLMModel", XLM, text, BLOCK),
    hf("xlnet", "XLNetModel", XLNET, text, BLOCK),
    hf("xmod", "XmodModel", XMOD, text, each("attention", "mlp", "adapter")),
    hf("yoso", "YosoModel", {**TEXT, "use_expectation": True}, text, BLOCK),
)
