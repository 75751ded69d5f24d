"""Pictures, by convolutions."""

from __future__ import annotations

from bench.zoo.families.vision.pictures import large
from bench.zoo.family import each, hf
from bench.zoo.inputs import SIDE, picture
from bench.zoo.sizes import NOTHING

CONVNEXT = {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [2, 2], "image_size": SIDE}
RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2]}
EFFICIENT = {"image_size": SIDE, "width_coefficient": 0.25, "depth_coefficient": 1.0, "hidden_dim": 320}
HGNET = {
    "embedding_size": 16, "stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 16, 32],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 16, 32, 32], "stage_num_blocks": [1, 1, 3, 1], "stage_numb_of_layers": [2, 2, 2, 2],
    "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 3, 1],
}  # fmt: skip
SHORTCUTS = {"identity": 3, "learned shortcut": 1}

FAMILIES = (
    hf("convnext", "ConvNextModel", CONVNEXT, picture, each("block", layers=4), quick=True),
    hf("convnextv2", "ConvNextV2Model", CONVNEXT, picture, each("block", layers=4)),
    hf(
        "dinov3_convnext",
        "DINOv3ConvNextModel",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": SIDE},
        picture,
        each("block", layers=4),
    ),
    hf("resnet_basic", "ResNetModel", {**RESNET, "layer_type": "basic"}, picture, SHORTCUTS),
    hf("resnet_bottleneck", "ResNetModel", RESNET, picture, SHORTCUTS),
    hf(
        "regnet_x",
        "RegNetModel",
        {**RESNET, "groups_width": 8, "layer_type": "x"},
        picture,
        {"identity": 2, "learned shortcut": 2},
    ),
    hf("regnet_y", "RegNetModel", {**RESNET, "groups_width": 8}, picture, {"identity": 2, "learned shortcut": 2}),
    hf("bit", "BitModel", {**RESNET, "num_groups": 4}, picture, {"identity": 2, "learned shortcut": 2}),
    hf(
        "bit_bottleneck",
        "BitModel",
        {**RESNET, "num_groups": 4, "layer_type": "bottleneck"},
        picture,
        {"identity": 2, "learned shortcut": 2},
    ),
    hf(
        "mobilenet_v1",
        "MobileNetV1Model",
        {"image_size": SIDE, "depth_multiplier": 0.25},
        picture,
        NOTHING,
        note="a control: no residual",
    ),
    hf(
        "mobilenet_v2",
        "MobileNetV2Model",
        {"image_size": SIDE, "depth_multiplier": 0.25},
        picture,
        {"inverted bottleneck": 10},
    ),
    hf("efficientnet", "EfficientNetModel", EFFICIENT, large, {"inverted bottleneck": 9}),
    hf("hgnet_v2", "HGNetV2Backbone", HGNET, picture, {"block": 2}),
    hf(
        "textnet",
        "TextNetModel",
        {
            "image_size": [64, 64],
            "hidden_sizes": [8, 8, 8, 16, 16],
            "stem_out_channels": 8,
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3]], [[3, 3]], [[3, 1]]],
            "conv_layer_strides": [[1], [2], [2], [1]],
        },
        large,
        NOTHING,
        note="sums of parallel convolutions that merge into one; no residual",
    ),
)
