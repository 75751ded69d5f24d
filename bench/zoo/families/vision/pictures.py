"""Pictures and videos."""

from __future__ import annotations

from typing import Any

import torch

from bench.zoo.family import LAYERS, each, hf, under
from bench.zoo.inputs import SIDE, image, picture
from bench.zoo.sizes import BLOCK, IMAGE, WIDTH

VIT = {**IMAGE, "pooler_output_size": WIDTH}
DINO = {**IMAGE, "mlp_ratio": 2}
SWIN = {
    "image_size": SIDE,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "mlp_ratio": 2.0,
}
PYRAMID = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 2, 2, 4],
    "image_size": SIDE,
}
MAE = {
    **IMAGE,
    "decoder_num_attention_heads": 4,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": LAYERS,
    "decoder_intermediate_size": 32,
}
MOBILEVIT = {
    "image_size": 64,
    "hidden_sizes": [16, 24, 32],
    "neck_hidden_sizes": [8, 16, 16, 16, 24, 32, 64],
    "num_attention_heads": 4,
}
LEVIT = {
    "image_size": 64,
    "hidden_sizes": [16, 24, 32],
    "num_attention_heads": [2, 2, 2],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}
HIERA = {"image_size": [SIDE, SIDE], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
DPT = {
    **IMAGE,
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 16, 16],
    "fusion_hidden_size": 16,
}
DINO_BACKBONE = {
    **DINO,
    "model_type": "dinov2",
    "num_hidden_layers": 4,
    "out_indices": [1, 2, 3, 4],
    "reshape_hidden_states": False,
}
DEPTH = {
    "backbone_config": DINO_BACKBONE,
    "patch_size": 8,
    "reassemble_hidden_size": WIDTH,
    "neck_hidden_sizes": [8, 8, 16, 16],
    "fusion_hidden_size": 16,
    "head_hidden_size": 8,
}
VJEPA = {
    "patch_size": 8, "crop_size": SIDE, "frames_per_clip": 4, "hidden_size": WIDTH, "num_attention_heads": 4,
    "num_hidden_layers": LAYERS, "mlp_ratio": 2.0, "pred_hidden_size": WIDTH, "pred_num_attention_heads": 4,
    "pred_num_hidden_layers": LAYERS, "pred_mlp_ratio": 2.0, "num_pooler_layers": 1,
}  # fmt: skip


def large() -> dict[str, Any]:
    """Pictures of 64 pixels."""
    return {"pixel_values": image(64)}


def video(frames: int = 4) -> dict[str, Any]:
    """A batch of short videos."""
    return {"pixel_values": torch.randn(2, frames, 3, SIDE, SIDE)}


def clip() -> dict[str, Any]:
    """The same, under the name that V-JEPA uses."""
    return {"pixel_values_videos": torch.randn(2, 4, 3, SIDE, SIDE)}


def masked_picture() -> dict[str, Any]:
    """Pictures with the noise that says which patches are masked."""
    return {"pixel_values": image(), "noise": torch.rand(2, 16)}


FAMILIES = (
    hf("vit", "ViTModel", VIT, picture, BLOCK),
    hf("deit", "DeiTModel", VIT, picture, BLOCK),
    hf("beit", "BeitModel", IMAGE, picture, BLOCK, note="a learned vector on the branch"),
    hf("beit_relative", "BeitModel", {**IMAGE, "use_relative_position_bias": True}, picture, BLOCK),
    hf("data2vec_vision", "Data2VecVisionModel", IMAGE, picture, BLOCK),
    hf("vit_msn", "ViTMSNModel", IMAGE, picture, BLOCK),
    hf("vit_mae", "ViTMAEForPreTraining", MAE, masked_picture, {**under("encoder", BLOCK), **under("decoder", BLOCK)}),
    hf("dinov2", "Dinov2Model", DINO, picture, BLOCK),
    hf("dinov2_swiglu", "Dinov2Model", {**DINO, "use_swiglu_ffn": True}, picture, BLOCK),
    hf("dinov2_with_registers", "Dinov2WithRegistersModel", DINO, picture, BLOCK),
    hf("dinov3_vit", "DINOv3ViTModel", {**IMAGE, "num_register_tokens": 2}, picture, BLOCK),
    hf("ijepa", "IJepaModel", VIT, picture, BLOCK),
    hf("aimv2", "Aimv2VisionModel", IMAGE, picture, {**BLOCK}),
    hf("pixio", "PixioModel", {**DINO, "n_cls_tokens": 2}, picture, BLOCK),
    hf(
        "imagegpt",
        "ImageGPTModel",
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "vocab_size": 101, "n_positions": 64},
        lambda: {"input_ids": torch.randint(0, 100, (2, 12))},
        BLOCK,
    ),
    hf(
        "vitdet",
        "VitDetModel",
        {**DINO, "pretrain_image_size": SIDE, "residual_block_indices": [1]},
        picture,
        {**BLOCK, "convolutions": 1},
    ),
    hf(
        "sam_vision",
        "SamVisionModel",
        {**IMAGE, "output_channels": 16, "num_pos_feats": 8, "window_size": 2, "global_attn_indexes": [1]},
        picture,
        BLOCK,
    ),
    hf("vivit", "VivitModel", {**VIT, "num_frames": 4, "tubelet_size": [2, 8, 8]}, video, BLOCK),
    hf("videomae", "VideoMAEModel", {**IMAGE, "num_frames": 4}, video, BLOCK),
    hf(
        "timesformer",
        "TimesformerModel",
        {**IMAGE, "num_frames": 4},
        video,
        each("temporal attention", "spatial attention", "mlp"),
        note="time attends without the class token, so its carrier is a slice",
    ),
    hf("vjepa2", "VJEPA2Model", VJEPA, clip, {**under("encoder", BLOCK), **under("predictor", BLOCK)}),
    hf("swin", "SwinModel", SWIN, picture, each("attention", "mlp", layers=4), quick=True),
    hf("swinv2", "Swinv2Model", SWIN, picture, each("attention", "mlp", layers=4), note="norms behind the branches"),
    hf("donut_swin", "DonutSwinModel", SWIN, picture, each("attention", "mlp", layers=4)),
    hf(
        "swin2sr",
        "Swin2SRForImageSuperResolution",
        {**SWIN, "patch_size": 1, "image_size": 16, "num_heads": [2, 2]},
        lambda: {"pixel_values": image(16)},
        {**each("attention", "mlp", layers=4), "stage": 2, "body": 1},
        note="residuals around stages and around all of them",
    ),
    hf(
        "focalnet",
        "FocalNetModel",
        {
            "image_size": SIDE,
            "embed_dim": 16,
            "hidden_sizes": [16, 32],
            "depths": [2, 2],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
        picture,
        each("modulation", "mlp", layers=4),
    ),
    hf("pvt", "PvtModel", PYRAMID, picture, each("attention", "mlp", layers=4)),
    hf("pvt_v2", "PvtV2Model", PYRAMID, picture, each("attention", "mlp", layers=4)),
    hf("segformer", "SegformerModel", PYRAMID, picture, each("attention", "mlp", layers=4)),
    hf("glpn", "GLPNModel", PYRAMID, picture, each("attention", "mlp", layers=4)),
    hf(
        "poolformer",
        "PoolFormerModel",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]},
        picture,
        each("pooling", "mlp", layers=4),
        note="pooling has no weights",
    ),
    hf(
        "cvt",
        "CvtModel",
        {"embed_dim": [16, 16, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3], "cls_token": [False, False, True]},
        picture,
        each("attention", "mlp", layers=6),
    ),
    hf("levit", "LevitModel", LEVIT, large, {**each("attention", "mlp", layers=3), "mlp behind subsampling": 2}),
    hf("hiera", "HieraModel", HIERA, picture, {"attention": 1, "attention with a learned shortcut": 3, "mlp": 4}),
    hf("mobilevit", "MobileViTModel", MOBILEVIT, large, {"inverted bottleneck": 2, "attention": 9, "mlp": 9}),
    hf(
        "mobilevitv2",
        "MobileViTV2Model",
        {"image_size": 64, "width_multiplier": 0.5, "n_attn_blocks": [1, 1, 1], "base_attn_unit_dims": [16, 24, 32]},
        large,
        {"inverted bottleneck": 1, "attention": 3, "mlp": 3},
    ),
    hf(
        "swiftformer",
        "SwiftFormerModel",
        {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "image_size": SIDE},
        picture,
        each("local convolutions", "query in attention", "attention", "mlp", layers=4),
        note="attention ends with proj(global * key) + query",
    ),
    hf(
        "dpt",
        "DPTForDepthEstimation",
        DPT,
        picture,
        {**each("attention", "mlp", layers=4), "convolutions of the neck": 7},
    ),
    hf(
        "depth_anything",
        "DepthAnythingForDepthEstimation",
        DEPTH,
        picture,
        {**each("attention", "mlp", layers=4), "convolutions of the neck": 7},
    ),
    hf(
        "vit_segformer_head",
        "SegformerForSemanticSegmentation",
        {**PYRAMID, "decoder_hidden_size": 16},
        picture,
        each("attention", "mlp", layers=4),
    ),
)
