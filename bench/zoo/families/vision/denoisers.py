"""diffusers: U-Nets, diffusion transformers and autoencoders."""

from __future__ import annotations

from typing import Any

import torch

from bench.zoo.family import LAYERS, Family, Parts, each, lib
from bench.zoo.inputs import image
from bench.zoo.sizes import BLOCK, WIDTH

HEADS: dict[str, Any] = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": LAYERS}
UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}
CONDITION = {
    **UNET,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
}
PLAIN = {
    **UNET,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
VAE = {"block_out_channels": (16,), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
TINY = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}
SD3 = {
    **HEADS,
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "joint_attention_dim": 16,
    "caption_projection_dim": WIDTH,
    "pooled_projection_dim": 16,
    "pos_embed_max_size": 8,
}
FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 4, 8),
}
CAPTIONED = each("attention", "cross attention", "mlp")
JOINT = each("attention", "mlp", "text attention", "text mlp")


def model(name: str, cls: str, sizes: dict[str, Any], call: Any, parts: Parts, **about: Any) -> Family:
    """A class of diffusers."""
    return lib(f"diffusers:{cls}", name, sizes, call, parts, **about)


def latents(side: int = 8, **more: torch.Tensor) -> dict[str, Any]:
    """Noisy latents and the time of each."""
    return {"hidden_states": image(side, 4), "timestep": torch.tensor([3, 7]), **more}


def caption(width: int = 16) -> torch.Tensor:
    """The states of a text encoder."""  # [B, S, C]
    return torch.randn(2, 5, width)


def flux() -> dict[str, Any]:
    """Latents as tokens with their places, text with its own."""
    return {
        "hidden_states": torch.randn(2, 16, 4), "encoder_hidden_states": caption(),
        "pooled_projections": torch.randn(2, 16),
        "timestep": torch.tensor([0.3, 0.7]), "img_ids": torch.rand(16, 3), "txt_ids": torch.zeros(5, 3),
        "guidance": None,
    }  # fmt: skip


def video(channels: int = 4) -> torch.Tensor:
    """Latents of short videos."""  # [B, C, F, H, W]
    return torch.randn(2, channels, 2, 8, 8)


FAMILIES = (
    model(
        "unet_2d",
        "UNet2DModel",
        PLAIN,
        lambda: {"sample": image(16, 4), "timestep": 3},
        {"residual block": 4, "residual block with a learned shortcut": 4, "attention": 4},
    ),
    model(
        "unet_2d_condition",
        "UNet2DConditionModel",
        CONDITION,
        lambda: {"sample": image(16, 4), "timestep": 3, "encoder_hidden_states": caption()},
        {
            "residual block": 4,
            "residual block with a learned shortcut": 4,
            **each("attention", "cross attention", "mlp", "around a transformer", layers=4),
        },
    ),
    model("autoencoder_kl", "AutoencoderKL", VAE, lambda: image(16), {"residual block": 7, "attention": 2}),
    model("autoencoder_tiny", "AutoencoderTiny", TINY, lambda: image(16), {"block": 4}),
    model(
        "dit",
        "DiTTransformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "sample_size": 8,
            "patch_size": 2,
            "num_embeds_ada_norm": 10,
            "norm_num_groups": 4,
        },
        lambda: latents(class_labels=torch.tensor([1, 2])),
        BLOCK,
        note="gates from the condition",
    ),
    model(
        "pixart",
        "PixArtTransformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "sample_size": 8,
            "patch_size": 2,
            "cross_attention_dim": WIDTH,
            "caption_channels": 16,
            "norm_num_groups": 4,
        },
        lambda: latents(encoder_hidden_states=caption()),
        CAPTIONED,
    ),
    model(
        "transformer_2d",
        "Transformer2DModel",
        {**HEADS, "in_channels": WIDTH, "cross_attention_dim": 16, "norm_num_groups": 8},
        lambda: {"hidden_states": image(8, WIDTH), "encoder_hidden_states": caption()},
        {**CAPTIONED, "around them": 1},
    ),
    model(
        "sd3",
        "SD3Transformer2DModel",
        SD3,
        lambda: latents(encoder_hidden_states=caption(), pooled_projections=torch.randn(2, 16)),
        {**BLOCK, "text attention": 1, "text mlp": 1},
        note="the last layer leaves the text alone",
    ),
    model(
        "flux",
        "FluxTransformer2DModel",
        FLUX,
        flux,
        {"attention": 1, "mlp": 1, "text attention": 1, "text mlp": 1, "attention with mlp": 1},
    ),
    model(
        "prior",
        "PriorTransformer",
        {
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "num_layers": LAYERS,
            "embedding_dim": 16,
            "num_embeddings": 5,
            "additional_embeddings": 4,
        },
        lambda: {
            "hidden_states": torch.randn(2, 16),
            "timestep": torch.tensor([3, 7]),
            "proj_embedding": torch.randn(2, 16),
            "encoder_hidden_states": caption(),
        },
        BLOCK,
    ),
    model(
        "cogvideox",
        "CogVideoXTransformer3DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "patch_size": 2,
            "max_text_seq_length": 5,
        },
        lambda: {
            "hidden_states": torch.randn(2, 2, 4, 8, 8),
            "encoder_hidden_states": caption(),
            "timestep": torch.tensor([3, 7]),
        },
        JOINT,
        note="the text leaves the last layer unread, so its last mlp has no gradient",
        still=3,
    ),
    model(
        "wan",
        "WanTransformer3DModel",
        {
            "patch_size": (1, 2, 2),
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 64,
            "num_layers": LAYERS,
            "rope_max_seq_len": 32,
        },
        lambda: {"hidden_states": video(), "timestep": torch.tensor([3, 7]), "encoder_hidden_states": caption()},
        CAPTIONED,
    ),
    model(
        "sana",
        "SanaTransformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_cross_attention_heads": 4,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": WIDTH,
            "caption_channels": 16,
            "sample_size": 8,
            "patch_size": 1,
        },
        lambda: latents(encoder_hidden_states=caption()),
        CAPTIONED,
        note="the mlp is a convolution",
    ),
    model(
        "stable_audio",
        "StableAudioDiTModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "num_layers": LAYERS,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "num_key_value_attention_heads": 2,
            "out_channels": 4,
            "cross_attention_dim": 16,
            "time_proj_dim": 8,
            "global_states_input_dim": 16,
            "cross_attention_input_dim": 16,
        },
        lambda: {
            "hidden_states": torch.randn(2, 4, 16),
            "timestep": torch.tensor([0.3, 0.7]),
            "encoder_hidden_states": caption(),
            "global_hidden_states": torch.randn(2, 1, 16),
        },
        {**CAPTIONED, "input convolution": 1, "output convolution": 1},
    ),
)
