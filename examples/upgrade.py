"""Give a transformers model hyper-connections, train it, save it, restore it into a fresh model, and generate text.

The model is a small Llama with random weights that reads bytes. Its text is the source of Python's own standard
library, so nothing is downloaded. Takes about half a minute on two cores:

    python examples/upgrade.py
"""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from pathlib import Path

import torch
import transformers
from torch import Tensor

import mhc_compile as mhc

STEPS, BATCH, LENGTH = 60, 8, 64


def build(seed: int) -> transformers.LlamaForCausalLM:
    """Return a Llama of two layers over bytes, with random weights."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config)


def read_text() -> Tensor:
    """Return some of the standard library's source as bytes, int64."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()


def require(holds: bool, what: str) -> None:
    """Stop with an error where something does not hold that should."""
    if not holds:
        sys.exit(f"failed: {what}")


def train(model: transformers.LlamaForCausalLM, text: Tensor) -> list[float]:
    """Train with AdamW and return the loss of every step."""
    # In param_groups, weight decay spares the biases and gates of the hyper-connections.
    optimizer = torch.optim.AdamW(mhc.param_groups(model, lr=3e-3, weight_decay=0.1))
    losses = []
    for _ in range(STEPS):
        starts = torch.randint(len(text) - LENGTH, (BATCH,)).tolist()
        batch = torch.stack([text[start : start + LENGTH] for start in starts])
        optimizer.zero_grad()
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def continued(model: transformers.LlamaForCausalLM, prompt: str) -> str:
    """Return the prompt with the 40 most likely bytes after it."""
    ids = torch.tensor([list(prompt.encode())])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0)
    return bytes(made[0].tolist()).decode("utf-8", errors="replace")


def main() -> None:
    """Run the example."""
    text = read_text()
    model = build(seed=0)
    call = {"input_ids": text[: BATCH * LENGTH].view(BATCH, LENGTH), "use_cache": False}

    print(mhc.explain(model, kwargs=call))  # changes nothing
    report = mhc.upgrade(model, kwargs=call)  # adds parameters; the function is still the same
    require(len(report.sites) == 4, f"two layers have four residual connections, but {len(report.sites)} were found")
    print(f"upgraded {len(report.sites)} sites; outputs differ by {report.max_error:.0e} of the largest entry")

    model.compile(backend="mhc")
    losses = train(model, text)
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {STEPS} steps")
    require(losses[-1] < 0.7 * losses[0], "training did not lower the loss")
    moved = max(parameter.abs().max().item() for name, parameter in mhc.named_parameters(model) if "phi" in name)
    print(f"the hyper-connections learned: the largest entry of phi went from 0 to {moved:.3f}")
    require(moved > 0, "the hyper-connections were not trained")

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.pt")
        torch.save(model.state_dict(), file)  # holds the plan, too
        restored = build(seed=1)
        mhc.restore(restored, torch.load(file))
    # A few tokens are not worth Inductor's time, so the rewritten graph runs as it is.
    restored.compile(backend="mhc", options={"compiler": "eager"})
    losses = [one(**call, labels=call["input_ids"]).loss.item() for one in (model, restored)]
    print(f"loss of the trained model {losses[0]:.4f}, of the restored one {losses[1]:.4f}")
    require(abs(losses[0] - losses[1]) < 1e-4, "the restored model computes something else")

    prompt = "def __init__(self"
    written = continued(restored, prompt)
    print(f"the restored model writes {written!r}")
    require(written.startswith(prompt) and len(written) == len(prompt) + 40, "no 40 characters were generated")


if __name__ == "__main__":
    main()
