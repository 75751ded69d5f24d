"""All families, by domain, in the order of the table."""

from __future__ import annotations

from bench.zoo.families import multimodal, series, sound
from bench.zoo.families.language import decoders, encoders, experts, recurrent, translators, xtransformers
from bench.zoo.families.vision import convolutions, denoisers, detection, imagenet, lucid, pictures
from bench.zoo.family import Family

DOMAINS: dict[str, tuple[Family, ...]] = {
    "Text decoders": decoders.FAMILIES,
    "Mixtures of experts": experts.FAMILIES,
    "Recurrences": recurrent.FAMILIES,
    "Text encoders": encoders.FAMILIES,
    "Text to text": translators.FAMILIES,
    "Pictures and videos": pictures.FAMILIES,
    "Convolutions": convolutions.FAMILIES,
    "Boxes and masks": detection.FAMILIES,
    "Sound": sound.FAMILIES,
    "Several media": multimodal.FAMILIES,
    "Time series": series.FAMILIES,
    "x-transformers": xtransformers.FAMILIES,
    "vit-pytorch": lucid.FAMILIES,
    "timm": imagenet.FAMILIES,
    "diffusers": denoisers.FAMILIES,
}
FAMILIES: tuple[Family, ...] = tuple(family for families in DOMAINS.values() for family in families)
