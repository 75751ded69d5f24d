"""Boxes and masks: a backbone, an encoder over its pixels, a decoder of queries."""

from __future__ import annotations

from typing import Any

from bench.zoo.family import hf
from bench.zoo.inputs import picture
from bench.zoo.sizes import BART, BLOCK, IMAGE, TRANSLATION, WIDTH

RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 16], "depths": [1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage3"],
}  # fmt: skip
PYRAMID = {**RESNET, "out_features": ["stage2", "stage3"]}
BACKBONE = {"backbone": 1, "backbone's learned shortcut": 2}
DETR: dict[str, Any] = {
    **{key: BART[key] for key in BART if key.startswith(("encoder", "decoder_l", "decoder_a", "decoder_f", "d_model"))},
    "num_queries": 5, "backbone_config": RESNET, "use_timm_backbone": False, "use_pretrained_backbone": False,
}  # fmt: skip
DEFORMABLE = {**DETR, "backbone_config": PYRAMID, "num_feature_levels": 2, "encoder_n_points": 2, "decoder_n_points": 2}

FIRST = "the first queries are 0, and so is the gradient of what reads them"

FAMILIES = (
    hf("detr", "DetrForObjectDetection", DETR, picture, {**BACKBONE, **TRANSLATION}, note=FIRST, still=2),
    hf(
        "conditional_detr",
        "ConditionalDetrForObjectDetection",
        DETR,
        picture,
        {**BACKBONE, **TRANSLATION},
        note=FIRST,
        still=2,
    ),
    hf(
        "dab_detr",
        "DabDetrForObjectDetection",
        {**DETR, "hidden_size": WIDTH},
        picture,
        {**BACKBONE, **TRANSLATION},
        note=FIRST,
        still=2,
    ),
    hf(
        "table_transformer",
        "TableTransformerForObjectDetection",
        DETR,
        picture,
        {**BACKBONE, **TRANSLATION},
        note=FIRST,
        still=2,
    ),
    hf("deformable_detr", "DeformableDetrForObjectDetection", DEFORMABLE, picture, {**BACKBONE, **TRANSLATION}),
    hf(
        "yolos", "YolosForObjectDetection", {**IMAGE, "image_size": [32, 32], "num_detection_tokens": 5}, picture, BLOCK
    ),
)
