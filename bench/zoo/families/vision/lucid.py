"""vit-pytorch: vision transformers after their papers."""

from __future__ import annotations

from typing import Any

import torch

from bench.zoo.family import LAYERS, Family, Parts, each, lib
from bench.zoo.inputs import SIDE, image
from bench.zoo.sizes import BLOCK, NOTHING, WIDTH

VIT: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 8,
    "num_classes": 10,
    "dim": WIDTH,
    "depth": LAYERS,
    "heads": 4,
    "mlp_dim": 64,
}
SMALL = {**VIT, "dim_head": 8}
CROSS = {
    "image_size": SIDE, "num_classes": 10, "depth": 1, "cross_attn_depth": 1, "cross_attn_heads": 2,
    "sm_dim": 16, "sm_patch_size": 8, "sm_enc_depth": 1, "sm_enc_heads": 2, "sm_enc_mlp_dim": 32,
    "lg_dim": WIDTH, "lg_patch_size": 16, "lg_enc_depth": 1, "lg_enc_heads": 4, "lg_enc_mlp_dim": 64,
}  # fmt: skip
CVT = {"num_classes": 10} | {
    f"s{stage}_{key}": value
    for stage in (1, 2, 3)
    for key, value in {"emb_dim": 16 * stage, "heads": stage, "depth": 1, "mlp_mult": 2}.items()
}
NEST = {
    "image_size": SIDE,
    "patch_size": 4,
    "dim": 16,
    "heads": 2,
    "num_hierarchies": 2,
    "block_repeats": (1, 1),
    "num_classes": 10,
}
XCIT = {**SMALL, "cls_depth": 1, "local_patch_kernel_size": 3}
TWINS = {"num_classes": 10} | {
    f"s{stage}_{key}": value
    for stage in (1, 2, 3, 4)
    for key, value in {
        "emb_dim": 8 * stage,
        "patch_size": 4 if stage == 1 else 2,
        "local_patch_size": 1,
        "global_k": 1,
        "depth": 1,
    }.items()
}
MOBILE = {
    "image_size": (64, 64),
    "dims": [16, 24, 32],
    "channels": [8, 8, 8, 8, 16, 16, 16, 16, 24, 24, 32],
    "num_classes": 10,
    "depths": (1, 1, 1),
}
MAXVIT = {
    "num_classes": 10,
    "dim_conv_stem": 8,
    "dim": 16,
    "dim_head": 8,
    "depth": (1, 1),
    "window_size": 4,
    "mbconv_expansion_rate": 2,
    "mbconv_shrinkage_rate": 0.25,
    "dropout": 0.0,
}
PIT = {
    "image_size": SIDE,
    "patch_size": 8,
    "dim": 16,
    "num_classes": 10,
    "depth": (1, 1),
    "heads": 2,
    "mlp_dim": 32,
    "dim_head": 8,
}
CROSSFORMER = {
    "num_classes": 10,
    "dim": (32, 32, 64, 64),
    "depth": (1, 1, 1, 1),
    "global_window_size": (4, 2, 2, 1),
    "local_window_size": (4, 4, 2, 1),
    "cross_embed_strides": (4, 2, 2, 2),
}
SPATIAL = {
    "image_size": SIDE,
    "image_patch_size": 8,
    "frames": 4,
    "frame_patch_size": 2,
    "num_classes": 10,
    "dim": WIDTH,
    "heads": 4,
    "mlp_dim": 64,
    "dim_head": 8,
}


def vit(module: str, parts: Parts, sizes: dict[str, Any] = SMALL, cls: str = "ViT", **about: Any) -> Family:
    """The class of a module of vit-pytorch, on pictures."""
    return lib(f"vit_pytorch.{module}:{cls}", module, sizes, image, parts, **about)


def video() -> torch.Tensor:
    """A batch of short videos."""  # [B, C, F, H, W]
    return torch.randn(2, 3, 4, SIDE, SIDE)


FAMILIES = (
    vit("vit", BLOCK),
    vit("simple_vit", BLOCK, cls="SimpleViT"),
    vit("deepvit", BLOCK, cls="DeepViT"),
    vit(
        "cait",
        {**BLOCK, "class attention": 1, "class mlp": 1},
        {**SMALL, "cls_depth": 1},
        "CaiT",
        note="a learned vector on the branch",
    ),
    vit(
        "cross_vit",
        {
            "small attention": 1,
            "small mlp": 1,
            "large attention": 1,
            "large mlp": 1,
            "small to large": 1,
            "large to small": 1,
        },
        CROSS,
        "CrossViT",
        note="the class token alone is the carrier of the cross attention",
    ),
    vit("cvt", each("attention", "mlp", layers=3), CVT, "CvT"),
    vit(
        "crossformer",
        each("short attention", "short mlp", "long attention", "long mlp", layers=4),
        CROSSFORMER,
        "CrossFormer",
    ),
    vit("learnable_memory_vit", BLOCK),
    vit(
        "parallel_vit",
        BLOCK,
        {**SMALL, "num_parallel_branches": 2},
        note="x + (f(x) + g(x)): one connection of two branches",
    ),
    vit("pit", each("attention", "mlp"), PIT, "PiT"),
    lib(
        "vit_pytorch.mobile_vit:MobileViT",
        "mobile_vit",
        MOBILE,
        lambda: image(64),
        {"inverted bottleneck": 3, "attention": 3, "mlp": 3},
    ),
    vit("max_vit", {"block attention": 2, "block mlp": 2, "grid attention": 2, "grid mlp": 2}, MAXVIT, "MaxViT"),
    vit("nest", each("attention", "mlp"), NEST, "NesT"),
    vit("rvt", BLOCK, SMALL, "RvT"),
    vit(
        "twins_svt",
        {
            **each("local attention", "local mlp", layers=6),
            **each("global attention", "global mlp", layers=8),
            "position convolution": 4,
        },
        TWINS,
        "TwinsSVT",
    ),
    vit("vit_for_small_dataset", BLOCK),
    vit("vit_with_patch_merger", BLOCK, {**SMALL, "patch_merge_layer": 1, "patch_merge_num_tokens": 4}),
    vit("xcit", {**each("attention", "convolution", "mlp"), "class attention": 1, "class mlp": 1}, XCIT, "XCiT"),
    vit(
        "simple_vit_with_hyper_connections",
        NOTHING,
        {**SMALL, "num_residual_streams": 4},
        "SimpleViT",
        note="hyper-connections already",
        streams=True,
    ),
    vit("simple_vit_with_value_residual", BLOCK, SMALL, "SimpleViT"),
    vit("simple_vit_with_register_tokens", BLOCK, SMALL, "SimpleViT"),
    vit("simple_uvit", BLOCK, {**SMALL, "num_register_tokens": 2}, "SimpleUViT"),
    lib("vit_pytorch.vit_3d:ViT", "vit_3d", {**SPATIAL, "depth": LAYERS}, video, BLOCK),
    lib(
        "vit_pytorch.vivit:ViViT",
        "vivit",
        {**SPATIAL, "spatial_depth": 1, "temporal_depth": 1},
        video,
        {"spatial attention": 1, "spatial mlp": 1, "temporal attention": 1, "temporal mlp": 1},
    ),
)
