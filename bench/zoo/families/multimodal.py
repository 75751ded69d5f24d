"""Text with pictures or sound."""

from __future__ import annotations

from typing import Any

import torch

from bench.zoo.families.vision.pictures import VIT
from bench.zoo.family import LAYERS, each, hf, under
from bench.zoo.inputs import ids, image, picture, text
from bench.zoo.sizes import BLOCK, CROSS, GROUPED, HEADED, IMAGE, SPECIAL, TEXT, WIDTH

CLIP_TEXT = {**TEXT, "max_position_embeddings": 64, "projection_dim": 16}
TOWERS: dict[str, Any] = {
    "text_config": CLIP_TEXT,
    "vision_config": {**IMAGE, "projection_dim": 16},
    "projection_dim": 16,
}
TWO_TOWERS = {**under("text", BLOCK), **under("picture", BLOCK)}
LLAVA = {
    "text_config": {"model_type": "llama", **GROUPED}, "vision_config": {"model_type": "clip_vision_model", **IMAGE},
    "image_token_id": 99, "image_token_index": 99, "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}  # fmt: skip
PALIGEMMA = {
    "text_config": {"model_type": "gemma", **HEADED}, "vision_config": {"model_type": "siglip_vision_model",
    **IMAGE, "projection_dim": WIDTH, "vision_use_head": False},
    "image_token_id": 99, "projection_dim": WIDTH, "hidden_size": WIDTH,
}  # fmt: skip
FLAVA = dict.fromkeys(("text_config", "multimodal_config"), TEXT) | {
    "image_config": IMAGE,
    "hidden_size": WIDTH,
    "projection_dim": 16,
}
LXMERT = {**TEXT, "l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 8}
BLIP = {
    "text_config": {**TEXT, "encoder_hidden_size": WIDTH, "is_decoder": False, "projection_dim": 16},
    "vision_config": {**IMAGE, "projection_dim": 16},
    "projection_dim": 16,
}
BLIP2 = {
    "vision_config": IMAGE,
    "qformer_config": {**TEXT, "encoder_hidden_size": WIDTH, "cross_attention_frequency": 2},
    "text_config": {
        "model_type": "opt",
        **TEXT,
        "ffn_dim": 64,
        "word_embed_proj_dim": WIDTH,
        "max_position_embeddings": 64,
    },
    "num_query_tokens": 4,
    "image_token_index": 99,
    "image_text_hidden_size": 16,
}
GROUPVIT = {
    "text_config": CLIP_TEXT,
    "vision_config": {
        **IMAGE,
        "depths": [1, 1, 1],
        "num_hidden_layers": 3,
        "num_group_tokens": [8, 4, 0],
        "num_output_groups": [8, 4, 0],
    },
    "projection_dim": 16,
    "projection_intermediate_dim": 32,
}
PIX2STRUCT = {
    "text_config": {**SPECIAL, "hidden_size": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": LAYERS, "num_heads": 4,
    "is_decoder": True},
    "vision_config": {"hidden_size": WIDTH, "patch_embed_hidden_size": 10, "d_ff": 64, "d_kv": 8,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "seq_len": 64},
}  # fmt: skip
GIT = {**TEXT, "vision_config": IMAGE, "max_position_embeddings": 64}
VILT = {**IMAGE, **TEXT, "max_position_embeddings": 64, "modality_type_vocab_size": 2, "max_image_length": -1}
SMOLVLM = {
    "text_config": {"model_type": "llama", **GROUPED},
    "vision_config": IMAGE,
    "image_token_id": 99,
    "scale_factor": 2,
}
DUAL = {
    "vision_config": {"model_type": "vit", **VIT},
    "text_config": {"model_type": "bert", **TEXT},
    "projection_dim": 16,
}
CAPTIONER = {
    "encoder": {"model_type": "vit", **VIT},
    "decoder": {
        "model_type": "gpt2",
        **SPECIAL,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": 64,
        "is_decoder": True,
        "add_cross_attention": True,
    },
    "decoder_start_token_id": 1,
    "pad_token_id": 0,
}
CLAP_SOUND = {
    "hidden_size": 32,
    "patch_embeds_hidden_size": 16,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "window_size": 4,
    "spec_size": 64,
    "num_mel_bins": 16,
    "patch_size": 4,
    "patch_stride": [4, 4],
    "enable_fusion": False,
    "projection_dim": 16,
    "num_classes": 4,
}
CLAP = {"text_config": {**TEXT, "projection_dim": 16}, "audio_config": CLAP_SOUND, "projection_dim": 16}


def captioned() -> dict[str, Any]:
    """Tokens, the last one the largest, and pictures."""
    return {"input_ids": ids(), "pixel_values": image(), "attention_mask": torch.ones(2, 12, dtype=torch.long)}


def seen(places: int = 16) -> dict[str, Any]:
    """Tokens of which the first stand for the patches of a picture."""
    tokens = torch.cat([torch.full((2, places), 99), torch.randint(3, 99, (2, 6))], 1)
    return {"input_ids": tokens, "pixel_values": image(), "attention_mask": torch.ones_like(tokens)}


def boxes() -> dict[str, Any]:
    """Tokens with the features of boxes in a picture."""
    return {**text(), "visual_feats": torch.randn(2, 4, 8), "visual_pos": torch.rand(2, 4, 4)}


def patches() -> dict[str, Any]:
    """Flattened patches, each with its row and column in front."""
    return {
        "flattened_patches": torch.cat([torch.randint(0, 4, (2, 9, 2)).float(), torch.randn(2, 9, 10)], -1),
        "decoder_input_ids": ids(7),
    }


FAMILIES = (
    hf("clip", "CLIPModel", TOWERS, captioned, TWO_TOWERS, quick=True),
    hf("chinese_clip", "ChineseCLIPModel", TOWERS, captioned, TWO_TOWERS),
    hf("altclip", "AltCLIPModel", {**TOWERS, "text_config": {**TEXT, "project_dim": 16}}, captioned, TWO_TOWERS),
    hf("siglip", "SiglipModel", TOWERS, captioned, {**TWO_TOWERS, "mlp of the pooling head": 1}),
    hf(
        "groupvit",
        "GroupViTModel",
        GROUPVIT,
        captioned,
        {
            **under("text", BLOCK),
            **under("picture", each("attention", "mlp", layers=3)),
            "cross attention of the grouping": 2,
            "mlp of the cross attention": 2,
            "assignment of the grouping": 2,
            "mlp of the grouping": 2,
        },
        note="grouping: two stages end with cross attention from group tokens, an assignment and an mlp",
    ),
    hf("owlvit", "OwlViTModel", TOWERS, captioned, TWO_TOWERS),
    hf("clipseg", "CLIPSegModel", TOWERS, captioned, TWO_TOWERS),
    hf("blip", "BlipModel", BLIP, captioned, TWO_TOWERS),
    hf(
        "blip_2",
        "Blip2ForConditionalGeneration",
        BLIP2,
        lambda: seen(4),
        {
            **under("picture", BLOCK),
            "query attention": 2,
            "query cross attention": 1,
            "query mlp": 2,
            **under("text", BLOCK),
        },
    ),
    hf("git", "GitForCausalLM", GIT, captioned, TWO_TOWERS),
    hf("flava", "FlavaModel", FLAVA, captioned, {**TWO_TOWERS, **under("both", BLOCK)}),
    hf("vilt", "ViltModel", VILT, captioned, BLOCK),
    hf(
        "visual_bert",
        "VisualBertModel",
        {**TEXT, "visual_embedding_dim": 8},
        lambda: {**text(), "visual_embeds": torch.randn(2, 4, 8)},
        BLOCK,
    ),
    hf(
        "lxmert",
        "LxmertModel",
        LXMERT,
        boxes,
        {"text": 2, "boxes": 2, "cross attention": 2, "self attention": 2, "mlp": 2},
        note="one layer of text, one of boxes, one of both",
    ),
    hf("llava", "LlavaForConditionalGeneration", LLAVA, seen, TWO_TOWERS),
    hf("paligemma", "PaliGemmaForConditionalGeneration", PALIGEMMA, seen, TWO_TOWERS),
    hf(
        "smolvlm",
        "SmolVLMForConditionalGeneration",
        SMOLVLM,
        lambda: {**seen(4), "pixel_values": image().unsqueeze(1)},
        TWO_TOWERS,
    ),
    hf(
        "pix2struct",
        "Pix2StructForConditionalGeneration",
        PIX2STRUCT,
        patches,
        {**under("picture", BLOCK), **under("text", CROSS)},
    ),
    hf("vision_text_dual_encoder", "VisionTextDualEncoderModel", DUAL, captioned, TWO_TOWERS),
    hf(
        "vision_encoder_decoder",
        "VisionEncoderDecoderModel",
        CAPTIONER,
        lambda: {**picture(), "decoder_input_ids": ids(7)},
        {**under("picture", BLOCK), **under("text", CROSS)},
    ),
    hf(
        "clap",
        "ClapModel",
        CLAP,
        lambda: {**text(), "input_features": torch.randn(2, 1, 64, 16)},
        {**under("text", BLOCK), **under("sound", BLOCK)},
    ),
)
