"""A byte-level Llama, and real text that is on every machine: the source of Python's own standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch

VALIDATE_EVERY = 10  # every tenth file of the text is for validation
VALIDATION_BATCHES = 8


def batches(steps: int, batch: int, length: int, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Draw batches of bytes, [batch, length] int64.

    Args:
        steps: number of batches for training.
        batch: sequences of a batch.
        length: bytes of a sequence.
        seed: of the draw.

    Returns:
        One batch per training step, and `VALIDATION_BATCHES` of other files.
    """
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    parts = [
        b"".join(f.read_bytes() for i, f in enumerate(files) if (i % VALIDATE_EVERY == 0) is held)
        for held in (False, True)
    ]
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for part, count in zip(parts, (steps, VALIDATION_BATCHES), strict=True):
        data = torch.frombuffer(bytearray(part), dtype=torch.uint8)
        starts = torch.randint(len(data) - length, (count, batch), generator=generator)
        windows = data.unfold(0, length, 1)[starts.flatten()].long()
        drawn.append(list(windows.view(count, batch, length)))
    return drawn[0], drawn[1]


def usual_inner(hidden: int) -> int:
    """Return the features of the MLP of a Llama of so many features."""
    return hidden * 8 // 3 // 32 * 32


def llama(hidden: int, layers: int, length: int, *, inner: int = 0, seed: int = 0) -> torch.nn.Module:
    """Return a LlamaForCausalLM, as Hugging Face ships it, whose layers are nearly all of its work.

    Args:
        hidden: features.
        layers: number of layers.
        length: most bytes of a sequence.
        inner: features of the MLP; 0 for about 8/3 of `hidden`.
        seed: of the weights.
    """
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=inner or usual_inner(hidden),
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        max_position_embeddings=length,
        use_cache=False,
    )
    model: torch.nn.Module = transformers.LlamaForCausalLM(config)
    return model
