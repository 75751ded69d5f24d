"""timm: the models of the ImageNet leaderboards."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from bench.zoo.family import LAYERS, Family, Parts, each
from bench.zoo.inputs import SIDE, as_call, image
from bench.zoo.sizes import BLOCK, NOTHING, PARALLEL, WIDTH

VIT: dict[str, Any] = {"img_size": SIDE, "patch_size": 8, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": 4}
STAGES: dict[str, Any] = {"depths": (2, 2, 1, 1), "dims": (8, 16, 24, 32)}
MIXER: dict[str, Any] = {"img_size": SIDE, "patch_size": 8, "num_blocks": LAYERS, "embed_dim": WIDTH}


def timm(name: str, parts: Parts, sizes: dict[str, Any], side: int = SIDE, note: str = "", **about: Any) -> Family:
    """A model by its name in timm, with its sizes overridden."""

    def build() -> nn.Module:
        made: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False, num_classes=10, **sizes)
        return made

    return Family("timm", name, build, lambda: as_call(image(side)), parts, note, **about)


def parallel() -> nn.Module:
    """A ViT of blocks x + attention(x) + mlp(x)."""
    vit = importlib.import_module("timm.models.vision_transformer")
    made: nn.Module = vit.VisionTransformer(**VIT, num_classes=10, block_fn=vit.ParallelScalingBlock)
    return made


def named(path: str, name: str, parts: Parts, sizes: dict[str, Any], **layers: str) -> Family:
    """A class of timm, where its named models do not let sizes be overridden; `layers` names classes beside it."""
    module, _, cls = path.partition(":")

    def build() -> nn.Module:
        source = importlib.import_module(f"timm.models.{module}")
        classes = {key: getattr(source, layer) for key, layer in layers.items()}
        made: nn.Module = getattr(source, cls)(**sizes, **classes, num_classes=10)
        return made

    return Family("timm", name, build, lambda: as_call(image()), parts)


RESNET18 = {"identity": 5, "learned shortcut": 3}

FAMILIES = (
    timm("vit_tiny_patch16_224", BLOCK, VIT),
    timm("deit3_small_patch16_224", BLOCK, VIT, note="a learned vector on the branch"),
    timm("deit_tiny_distilled_patch16_224", BLOCK, VIT),
    timm("vit_small_patch16_18x2_224", BLOCK, VIT, note="x + (f(x) + g(x)): one connection of two branches"),
    timm("vit_relpos_base_patch16_rpn_224", BLOCK, VIT, note="norms behind the branches"),
    Family("timm", "vit_parallel_scaling", parallel, lambda: as_call(image()), PARALLEL),
    timm("beit_base_patch16_224", BLOCK, VIT),
    timm("eva02_tiny_patch14_224", BLOCK, VIT),
    timm(
        "cait_xxs24_224", {**BLOCK, "class attention": 2, "class mlp": 2}, VIT, note="class attention carries one token"
    ),
    timm(
        "xcit_nano_12_p16_224",
        {**each("attention", "convolution", "mlp"), "class attention": 2, "class mlp": 2},
        VIT,
        note="the class mlp's residual doubles the other tokens",
    ),
    timm("convit_tiny", BLOCK, VIT),
    named("mlp_mixer:MlpMixer", "mixer", each("token mlp", "channel mlp"), MIXER),
    named(
        "mlp_mixer:MlpMixer",
        "resmlp",
        each("token mixing", "channel mlp"),
        {**MIXER, "mlp_ratio": 4},
        block_layer="ResBlock",
    ),
    named(
        "mlp_mixer:MlpMixer",
        "gmlp",
        each("gated mlp"),
        {**MIXER, "mlp_ratio": 4},
        block_layer="SpatialGatingBlock",
        mlp_layer="GatedMlp",
    ),
    named(
        "convmixer:ConvMixer",
        "convmixer",
        each("depthwise convolution"),
        {"dim": WIDTH, "depth": LAYERS, "patch_size": 4},
    ),
    timm("convnext_atto", each("block", layers=6), STAGES),
    timm("inception_next_tiny", each("block", layers=6), {"depths": (2, 2, 1, 1), "dims": (16, 32, 48, 64)}),
    timm("mambaout_femto", each("gated convolution", layers=6), STAGES),
    timm(
        "davit_tiny",
        each("first convolution", "attention", "second convolution", "mlp", layers=4),
        {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (2, 2), "window_size": 4},
    ),
    timm("starnet_s1", each("block", layers=6), {"base_dim": 8, "depths": (2, 2, 1, 1)}),
    timm("resnet18", RESNET18, {}),
    timm("seresnet18", RESNET18, {}),
    timm("mobilenetv3_small_100", {"inverted bottleneck": 6}, {}),
    timm(
        "densenet121",
        NOTHING,
        {"growth_rate": 4, "block_config": (2, 2, 2, 2)},
        note="a control: concatenates instead of adding",
    ),
)
