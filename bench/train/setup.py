"""What is trained, on what, and how often it is measured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from bench.common import tokens
from mhc_compile.cli.language import llama


@dataclass(frozen=True)
class Setup:
    """One transformer and its batch.

    Attributes:
        hidden: features C.
        layers: number of layers, two connections each.
        batch: sequences of a training step.
        length: tokens of a sequence.
        prompt: tokens of the one sequence that inference reads at once, and then decodes behind.
        streams: number n of streams.
        dtype: of the model; parameters of connections stay in float32.
        device: "cpu" or "cuda".
        compiler: torch.compile's backend, and what is behind mhc: "inductor", "aot_eager" or "eager".
        threads: of the CPU.
        rounds: timed steps of each contender.
    """

    hidden: int = 512
    layers: int = 4
    batch: int = 4
    length: int = 256
    prompt: int = 256
    streams: int = 4
    dtype: str = "float32"
    device: str = "cpu"
    compiler: str = "inductor"
    threads: int = dataclasses.field(default_factory=torch.get_num_threads)
    rounds: int = 15

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the dtype that the name stands for."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def build(self) -> torch.nn.Module:
        """Return the plain model, always with the same weights."""
        return llama(self.hidden, self.layers, max(self.length, self.prompt + 8)).to(self.device, self.torch_dtype)

    def inputs(self) -> dict[str, torch.Tensor]:
        """Return the keyword arguments of a training step."""
        return tokens(self.batch, self.length, self.device)

    @property
    def title(self) -> str:
        """Say it in a line."""
        shape = f"Llama {self.hidden} x {self.layers}, {self.batch} x {self.length} tokens"
        return f"{shape}, n={self.streams}, {self.dtype}, {self.device}"


@dataclass(frozen=True)
class Sizes:
    """What is measured by default on a kind of device."""

    hidden: tuple[int, ...]
    dtypes: tuple[str, ...]


CPU = Sizes((256, 512, 1024), ("float32", "bfloat16"))
CUDA = Sizes((2560, 4096, 7168), ("bfloat16",))  # C of the paper's 27B model first
DRY: dict[str, Any] = {"layers": 3, "length": 16, "prompt": 16, "batch": 2, "rounds": 2, "compiler": "eager"}


def layers_for(hidden: int, device: str) -> int:
    """Return how many layers are measured by default: six contenders with AdamW have to fit into a GPU of 80 GB."""
    if not device.startswith("cuda"):
        return 4
    return 1 if hidden > CUDA.hidden[1] else 2
