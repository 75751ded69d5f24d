"""Arguments of the calls: small, random, and the same for a seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

VOCABULARY = 100
SIDE = 32  # pixels


def as_call(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments: of a dict, of a tuple, or of one tensor."""
    if isinstance(given, dict):
        return (), given
    return (given if isinstance(given, tuple) else (given,)), {}


def ids(length: int = 12) -> Tensor:
    """Token numbers, none of them special."""  # [B, T]
    return torch.randint(3, VOCABULARY, (2, length))


def text() -> dict[str, Any]:
    """A batch of tokens."""
    return {"input_ids": ids()}


def masked_text() -> dict[str, Any]:
    """Tokens with a padding mask."""
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 8:] = 0
    return {"input_ids": ids(), "attention_mask": mask}


def translation() -> dict[str, Any]:
    """Tokens for an encoder and for a decoder."""
    return {"input_ids": ids(), "decoder_input_ids": ids(7)}


def image(side: int = SIDE, channels: int = 3) -> Tensor:
    """A batch of pictures."""  # [B, C, H, W]
    return torch.randn(2, channels, side, side)


def picture() -> dict[str, Any]:
    """A batch of pictures, under the name that transformers uses."""
    return {"pixel_values": image()}


def wave(samples: int = 1600) -> dict[str, Any]:
    """A batch of sound."""
    return {"input_values": torch.randn(2, samples)}


def speech(mels: int = 8, frames: int = 40) -> dict[str, Any]:
    """Spectrograms for an encoder and tokens for a decoder."""
    return {"input_features": torch.randn(2, mels, frames), "decoder_input_ids": ids(7)}
