"""language: the text is real, drawn the same again, and training and validation share no file."""

from __future__ import annotations

import torch

from mhc_compile.cli import language


def test_the_text_is_the_standard_library_and_the_split_is_clean() -> None:
    training, validation = language.batches(3, 2, 16, 0)
    assert len(training) == 3
    assert len(validation) == language.VALIDATION_BATCHES
    assert training[0].shape == (2, 16)
    assert training[0].dtype == torch.int64
    again = language.batches(3, 2, 16, 0)[0]
    assert all(torch.equal(a, b) for a, b in zip(training, again, strict=True))
    other = language.batches(3, 2, 16, 1)[0]
    assert not torch.equal(torch.stack(training), torch.stack(other))
    written = bytes(torch.cat(training).flatten().tolist()).decode("utf-8", "replace")
    assert sum(character.isprintable() or character.isspace() for character in written) > 90


def test_a_llama_follows_from_its_seed_and_shape() -> None:
    one, again, other = (language.llama(32, 2, 16, inner=48, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.get_parameter("model.layers.1.mlp.up_proj.weight").shape == (48, 32)
